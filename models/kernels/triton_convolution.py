"""Triton kernels: depthwise convolution, bias and GELU in one pass over the map, alone or as a weighted residual.

With ``z = DWConv(x) + bias``, the result is ``GELU(z)``, or ``x + drop · scale · GELU(z)`` with one factor ``drop`` per
image and one ``scale`` per channel. All maps are contiguous, ``(batch, height, width, channels)``. Sums are float32.

The backward pass computes z again instead of storing it, in three kernels: ∂z; the gradient of x, a convolution of ∂z;
the gradient of the weight. Sums over pixels are written by each program and added up afterwards. So they are added in
the same order each time: the same inputs give the same bits. Programs that run side by side read the same image, so
that the GPU's cache holds it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

PIXELS, CHANNELS = 64, 32  # of a program
PIXELS_OF_SUM = 1024  # least number of pixels that a program of the weight's gradient adds up


@triton.jit
def _gelu(z):
    return 0.5 * z * (1 + tl.erf(z * 0.7071067811865476))


@triton.jit
def _gelu_slope(z):
    return 0.5 * (1 + tl.erf(z * 0.7071067811865476)) + z * tl.exp(-0.5 * z * z) * 0.3989422804014327


@triton.jit
def _convolve(x, weight, first, p, c, height, width, channels, K: tl.constexpr, TURNED: tl.constexpr):
    """The convolution at pixels p, channels c of the image that begins at pixel ``first``; TURNED by 180 degrees."""
    row, column = p // width, p % width
    in_map, in_channels = p < height * width, c < channels
    total = tl.zeros((p.shape[0], c.shape[0]), dtype=tl.float32)
    for down in range(K):
        for right in tl.static_range(K):
            y, x_ = row + down - K // 2, column + right - K // 2
            mask = in_map & (y >= 0) & (y < height) & (x_ >= 0) & (x_ < width)
            values = tl.load(
                x + (first + y * width + x_)[:, None] * channels + c[None, :],
                mask=mask[:, None] & in_channels[None, :],
                other=0.0,
            )
            tap = K * K - 1 - down * K - right if TURNED else down * K + right
            factors = tl.load(weight + c * K * K + tap, mask=in_channels, other=0.0)
            total += values.to(tl.float32) * factors.to(tl.float32)[None, :]
    return total


@triton.jit
def _place(height, width, channels, P: tl.constexpr, C: tl.constexpr):
    """This program's image, the image's first pixel, pixels, channels, and where they lie and whether they exist."""
    p, c = tl.program_id(0) * P + tl.arange(0, P), tl.program_id(1) * C + tl.arange(0, C)
    image = tl.program_id(2).to(tl.int64)
    first = image * height * width
    at = (first + p)[:, None] * channels + c[None, :]
    return image, first, p, c, at, (p < height * width)[:, None] & (c < channels)[None, :]


@triton.jit
def _forward(
    x, weight, bias, scale, drop, out, height, width, channels,
    K: tl.constexpr, RESIDUAL: tl.constexpr, P: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    image, first, p, c, at, mask = _place(height, width, channels, P, C)
    z = _convolve(x, weight, first, p, c, height, width, channels, K, False)
    value = _gelu(z + tl.load(bias + c, mask=c < channels, other=0.0).to(tl.float32)[None, :])
    if RESIDUAL:
        value *= tl.load(drop + image) * tl.load(scale + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
        value += tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _backward_z(
    grad, x, weight, bias, scale, drop, grad_z, sums, height, width, channels,
    K: tl.constexpr, RESIDUAL: tl.constexpr, P: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """∂z of every pixel, and each program's sums over pixels for bias and scale, ``(programs, 2, channels)``."""
    image, first, p, c, at, mask = _place(height, width, channels, P, C)
    z = _convolve(x, weight, first, p, c, height, width, channels, K, False)
    z += tl.load(bias + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
    g = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
    to = (image * tl.num_programs(0) + tl.program_id(0)) * 2 * channels + c
    if RESIDUAL:
        g *= tl.load(drop + image)
        tl.store(sums + to + channels, tl.sum(g * _gelu(z), axis=0), mask=c < channels)
        g *= tl.load(scale + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
    g *= _gelu_slope(z)
    tl.store(sums + to, tl.sum(g, axis=0), mask=c < channels)
    tl.store(grad_z + at, g.to(grad_z.dtype.element_ty), mask=mask)


@triton.jit
def _backward_x(
    grad, grad_z, weight, grad_x, height, width, channels,
    K: tl.constexpr, RESIDUAL: tl.constexpr, P: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    _, first, p, c, at, mask = _place(height, width, channels, P, C)
    value = _convolve(grad_z, weight, first, p, c, height, width, channels, K, True)
    if RESIDUAL:
        value += tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(grad_x + at, value.to(grad_x.dtype.element_ty), mask=mask)


@triton.jit
def _backward_weight(
    x, grad_z, sums, images, images_each, height, width, channels,
    K: tl.constexpr, P: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """One tap of the kernels: each program's sum over its images, ``(programs, K · K, channels)``."""
    tap, c = tl.program_id(0), tl.program_id(1) * C + tl.arange(0, C)
    down, right = tap // K - K // 2, tap % K - K // 2
    pixels = height * width
    total = tl.zeros((P, C), dtype=tl.float32)
    start = tl.program_id(2).to(tl.int64) * images_each * pixels
    end = tl.minimum(start + images_each * pixels, images * pixels)
    for block in range(start, end, P):
        q = block + tl.arange(0, P)  # pixels of all images, one after the other
        p = q % pixels
        y, x_ = p // width + down, p % width + right
        mask = (q < end) & (y >= 0) & (y < height) & (x_ >= 0) & (x_ < width)
        mask = mask[:, None] & (c < channels)[None, :]
        g = tl.load(grad_z + q[:, None] * channels + c[None, :], mask=mask, other=0.0)
        v = tl.load(x + (q + down * width + right)[:, None] * channels + c[None, :], mask=mask, other=0.0)
        total += g.to(tl.float32) * v.to(tl.float32)
    to = (tl.program_id(2).to(tl.int64) * K * K + tap) * channels + c
    tl.store(sums + to, tl.sum(total, axis=0), mask=c < channels)


def forward(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, drop: Tensor | None) -> Tensor:
    """Return ``GELU(z)``; with ``scale`` and ``drop`` the weighted residual.

    Args:
        x: ``(batch, height, width, channels)``, contiguous.
        weight: ``(channels, 1, k, k)``, k odd.
        bias: ``(channels,)``.
        scale: ``(channels,)`` or None.
        drop: float32 ``(batch,)`` or None.
    """
    n, height, width, channels = x.shape
    out = torch.empty_like(x)
    is_residual = scale is not None
    grid = (triton.cdiv(height * width, PIXELS), triton.cdiv(channels, CHANNELS), n)
    sizes = (height, width, channels, weight.shape[-1], is_residual, PIXELS, CHANNELS)
    factors = (scale, drop) if is_residual else (bias, bias)
    _forward[grid](x, weight, bias, *factors, out, *sizes)
    return out


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, drop: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return gradients, from the result's gradient, which is contiguous. The other arguments are :func:`forward`'s.

    Returns:
        The gradients of x and of weight, and those of bias and scale, ``(2, channels)``. Without a scale the second row
        has no meaning.
    """
    n, height, width, channels = x.shape
    is_residual = scale is not None
    k = weight.shape[-1]
    blocks, groups = triton.cdiv(height * width, PIXELS), triton.cdiv(channels, CHANNELS)
    grad_z, grad_x = torch.empty_like(x), torch.empty_like(x)
    sums = x.new_empty(n, blocks, 2, channels, dtype=torch.float32)
    sizes = (height, width, channels, k, is_residual, PIXELS, CHANNELS)
    grid = (blocks, groups, n)
    factors = (scale, drop) if is_residual else (bias, bias)
    _backward_z[grid](grad, x, weight, bias, *factors, grad_z, sums, *sizes)
    _backward_x[grid](grad, grad_z, weight, grad_x, *sizes)
    each = triton.cdiv(PIXELS_OF_SUM, height * width)
    taps = x.new_empty(triton.cdiv(n, each), k * k, channels, dtype=torch.float32)
    _backward_weight[k * k, groups, len(taps)](x, grad_z, taps, n, each, height, width, channels, k, PIXELS, CHANNELS)
    grad_weight = taps.sum(dim=0).t().contiguous().view(weight.shape).to(weight.dtype)
    return grad_x, grad_weight, sums.sum(dim=(0, 1)).to(bias.dtype)
