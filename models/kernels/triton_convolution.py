"""Triton kernels: depthwise convolution, bias and GELU in one pass over the map, alone or as a weighted residual.

With ``z = DWConv(x) + bias``, the result is ``GELU(z)``, or ``x + drop · scale · GELU(z)`` with one factor ``drop`` per
image and one ``scale`` per channel. All maps are contiguous, ``(batch, height, width, channels)``. Sums are float32.

The backward pass computes z again instead of storing it: one kernel makes ∂z, another the gradient of x, which is a
convolution of ∂z. The gradient of the weight is torch's. Sums over pixels are written by each program and added up
afterwards, in the same order each time.

A program computes four rows of a few columns, so that it uses each value of the map that it loads for up to four
results.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 4  # of a program; the kernels name them one by one
COLUMNS, CHANNELS, WARPS = 16, 32, 2  # of a program


@triton.jit
def _gelu(z):
    return 0.5 * z * (1 + tl.erf(z * 0.7071067811865476))


@triton.jit
def _gelu_slope(z):
    return 0.5 * (1 + tl.erf(z * 0.7071067811865476)) + z * tl.exp(-0.5 * z * z) * 0.3989422804014327


@triton.jit
def _convolve(x, taps, row, column, c, height, width, channels, K: tl.constexpr, TURNED: tl.constexpr):
    """The convolution at four rows of the image x, from ``row`` on; its kernel TURNED by 180 degrees."""
    a0 = tl.zeros((column.shape[0], c.shape[0]), dtype=tl.float32)
    a1, a2, a3 = a0, a0, a0
    for right in range(K):
        x_ = column + right - K // 2
        at = x_[:, None] * channels + c[None, :]
        mask = ((x_ >= 0) & (x_ < width))[:, None] & (c < channels)[None, :]
        w0 = tl.zeros((c.shape[0],), dtype=tl.float32)
        w1, w2, w3 = w0, w0, w0  # the taps of the rows above
        for down in tl.static_range(K + 3):
            y = row + down - K // 2
            values = tl.load(x + y * width * channels + at, mask=mask & (y >= 0) & (y < height), other=0.0)
            values = values.to(tl.float32)
            if down < K:
                tap = K * K - 1 - down * K - right if TURNED else down * K + right
                w0 = tl.load(taps + tap * channels + c, mask=c < channels, other=0.0)
                a0 += values * w0[None, :]
            if (down >= 1) & (down < K + 1):
                a1 += values * w1[None, :]
            if (down >= 2) & (down < K + 2):
                a2 += values * w2[None, :]
            if down >= 3:
                a3 += values * w3[None, :]
            w1, w2, w3 = w0, w1, w2
    return a0, a1, a2, a3


@triton.jit
def _place(height, width, channels, X: tl.constexpr, C: tl.constexpr):
    """This program's image, the image's first element, row, columns, channels, and the place of the row's elements."""
    across = tl.cdiv(width, X)
    row, column = tl.program_id(0) // across * 4, tl.program_id(0) % across * X + tl.arange(0, X)
    c = tl.program_id(1) * C + tl.arange(0, C)
    image = tl.program_id(2).to(tl.int64)
    mask = (column < width)[:, None] & (c < channels)[None, :]
    return image, image * height * width * channels, row, column, c, column[:, None] * channels + c[None, :], mask


@triton.jit
def _store_result(z, x, out, factor, at, mask, RESIDUAL: tl.constexpr):
    value = _gelu(z)
    if RESIDUAL:
        value = value * factor[None, :] + tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _forward(
    x, taps, bias, scale, drop, out, height, width, channels,
    K: tl.constexpr, RESIDUAL: tl.constexpr, X: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    image, first, row, column, c, at, mask = _place(height, width, channels, X, C)
    z0, z1, z2, z3 = _convolve(x + first, taps, row, column, c, height, width, channels, K, False)
    b = tl.load(bias + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
    factor = b
    if RESIDUAL:
        factor = tl.load(drop + image) * tl.load(scale + c, mask=c < channels, other=0.0).to(tl.float32)
    line = width * channels
    at += first + row * line
    _store_result(z0 + b, x, out, factor, at, mask, RESIDUAL)
    _store_result(z1 + b, x, out, factor, at + line, mask & (row + 1 < height), RESIDUAL)
    _store_result(z2 + b, x, out, factor, at + 2 * line, mask & (row + 2 < height), RESIDUAL)
    _store_result(z3 + b, x, out, factor, at + 3 * line, mask & (row + 3 < height), RESIDUAL)


@triton.jit
def _store_slope(z, grad, grad_z, kept, factor, at, mask, RESIDUAL: tl.constexpr):
    """Store ∂z. Returns this row's sums for bias and scale."""
    g = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
    to_scale = tl.sum(g, axis=0)
    if RESIDUAL:
        to_scale = tl.sum(g * kept * _gelu(z), axis=0)
        g *= kept * factor[None, :]
    g *= _gelu_slope(z)
    tl.store(grad_z + at, g.to(grad_z.dtype.element_ty), mask=mask)
    return tl.sum(g, axis=0), to_scale


@triton.jit
def _backward_z(
    grad, x, taps, bias, scale, drop, grad_z, sums, height, width, channels,
    K: tl.constexpr, RESIDUAL: tl.constexpr, X: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """∂z of every pixel, and each program's sums over pixels for bias and scale, ``(programs, 2, channels)``."""
    image, first, row, column, c, at, mask = _place(height, width, channels, X, C)
    z0, z1, z2, z3 = _convolve(x + first, taps, row, column, c, height, width, channels, K, False)
    b = tl.load(bias + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
    kept, factor = 1.0, b
    if RESIDUAL:
        kept, factor = tl.load(drop + image), tl.load(scale + c, mask=c < channels, other=0.0).to(tl.float32)
    line = width * channels
    at += first + row * line
    b0, s0 = _store_slope(z0 + b, grad, grad_z, kept, factor, at, mask, RESIDUAL)
    b1, s1 = _store_slope(z1 + b, grad, grad_z, kept, factor, at + line, mask & (row + 1 < height), RESIDUAL)
    b2, s2 = _store_slope(z2 + b, grad, grad_z, kept, factor, at + 2 * line, mask & (row + 2 < height), RESIDUAL)
    b3, s3 = _store_slope(z3 + b, grad, grad_z, kept, factor, at + 3 * line, mask & (row + 3 < height), RESIDUAL)
    to = (image * tl.num_programs(0) + tl.program_id(0)) * 2 * channels + c
    tl.store(sums + to, b0 + b1 + b2 + b3, mask=c < channels)
    if RESIDUAL:
        tl.store(sums + to + channels, s0 + s1 + s2 + s3, mask=c < channels)


@triton.jit
def _store_gradient(value, grad, grad_x, at, mask, RESIDUAL: tl.constexpr):
    if RESIDUAL:
        value += tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(grad_x + at, value.to(grad_x.dtype.element_ty), mask=mask)


@triton.jit
def _backward_x(
    grad, grad_z, taps, grad_x, height, width, channels,
    K: tl.constexpr, RESIDUAL: tl.constexpr, X: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    _, first, row, column, c, at, mask = _place(height, width, channels, X, C)
    v0, v1, v2, v3 = _convolve(grad_z + first, taps, row, column, c, height, width, channels, K, True)
    line = width * channels
    at += first + row * line
    _store_gradient(v0, grad, grad_x, at, mask, RESIDUAL)
    _store_gradient(v1, grad, grad_x, at + line, mask & (row + 1 < height), RESIDUAL)
    _store_gradient(v2, grad, grad_x, at + 2 * line, mask & (row + 2 < height), RESIDUAL)
    _store_gradient(v3, grad, grad_x, at + 3 * line, mask & (row + 3 < height), RESIDUAL)


def _grid(x: Tensor) -> tuple[int, int, int]:
    n, height, width, channels = x.shape
    return triton.cdiv(width, COLUMNS) * triton.cdiv(height, ROWS), triton.cdiv(channels, CHANNELS), n


def _taps(weight: Tensor) -> Tensor:
    """Weights ``(channels, 1, k, k)`` as float32 ``(k · k, channels)``, so that a program reads them side by side."""
    return weight.flatten(1).t().float().contiguous()


def forward(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, drop: Tensor | None) -> Tensor:
    """Return ``GELU(z)``; with ``scale`` and ``drop`` the weighted residual.

    Args:
        x: ``(batch, height, width, channels)``, contiguous.
        weight: ``(channels, 1, k, k)``, k odd.
        bias: ``(channels,)``.
        scale: ``(channels,)`` or None.
        drop: float32 ``(batch,)`` or None.
    """
    out = torch.empty_like(x)
    is_residual = scale is not None
    factors = (scale, drop) if is_residual else (bias, bias)
    sizes = (*x.shape[1:], weight.shape[-1], is_residual, COLUMNS, CHANNELS)
    _forward[_grid(x)](x, _taps(weight), bias, *factors, out, *sizes, num_warps=WARPS)
    return out


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, drop: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return gradients, from the result's gradient, which is contiguous. The other arguments are :func:`forward`'s.

    Returns:
        The gradients of x and of weight, and those of bias and scale, ``(2, channels)``. Without a scale the second row
        has no meaning.
    """
    is_residual = scale is not None
    k, grid, taps = weight.shape[-1], _grid(x), _taps(weight)
    grad_z, grad_x = torch.empty_like(x), torch.empty_like(x)
    sums = x.new_empty(len(x), grid[0], 2, x.shape[-1], dtype=torch.float32)
    sizes = (*x.shape[1:], k, is_residual, COLUMNS, CHANNELS)
    factors = (scale, drop) if is_residual else (bias, bias)
    _backward_z[grid](grad, x, taps, bias, *factors, grad_z, sums, *sizes, num_warps=WARPS)
    _backward_x[grid](grad, grad_z, taps, grad_x, *sizes, num_warps=WARPS)
    return grad_x, _weight_gradient(grad_z, x, weight).to(weight.dtype), sums.sum(dim=(0, 1)).to(bias.dtype)


def _weight_gradient(grad_z: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    maps = (grad_z.permute(0, 3, 1, 2), x.permute(0, 3, 1, 2), weight.to(x.dtype))
    padding = [weight.shape[-1] // 2] * 2
    options = (None, [1, 1], padding, [1, 1], False, [0, 0], len(weight), (False, True, False))
    return torch.ops.aten.convolution_backward(*maps, *options)[1]
