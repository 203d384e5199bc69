"""Triton kernels: a weighted residual and the CenterNorm behind it, in one pass over the map.

With ``s = x + drop · scale · branch``, the result is ``weight · gain · (s - mean(s)) + bias``, where the mean is over
the d channels and gain = d / (d - 1). All maps are contiguous, ``(batch, height, width, channels)``. Sums are float32.
The backward pass computes s again instead of storing it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ELEMENTS = 4096  # of a program
TOKENS_OF_SUM = 64  # least number of tokens whose gradients a program adds up


@triton.jit
def _centred(x, branch, factor, at, mask, channels):
    """``s - mean(s)``, float32 ``(tokens, channels)``."""
    s = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    s += tl.load(branch + at, mask=mask, other=0.0).to(tl.float32) * factor
    return tl.where(mask, s - (tl.sum(s, axis=1) / channels)[:, None], 0.0)


@triton.jit
def _forward(
    x, branch, scale, drop, weight, bias, out, gain, tokens, tokens_of_image, channels, T: tl.constexpr, C: tl.constexpr
):
    t, c = tl.program_id(0).to(tl.int64) * T + tl.arange(0, T), tl.arange(0, C)
    mask = (t < tokens)[:, None] & (c < channels)[None, :]
    at = t[:, None] * channels + c[None, :]
    kept = tl.load(drop + t // tokens_of_image, mask=t < tokens, other=0.0)[:, None]
    factor = kept * tl.load(scale + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
    w = tl.load(weight + c, mask=c < channels, other=0.0).to(tl.float32) * gain
    y = _centred(x, branch, factor, at, mask, channels) * w[None, :]
    y += tl.load(bias + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
    tl.store(out + at, y.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _backward(
    grad, x, branch, scale, drop, weight, grad_x, grad_branch, sums,
    gain, tokens, tokens_of_image, channels, blocks, T: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """The maps' gradients, and each program's sums over tokens for scale, weight, bias: ``(programs, 3, channels)``."""
    c = tl.arange(0, C)
    a = tl.load(scale + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
    w = tl.load(weight + c, mask=c < channels, other=0.0).to(tl.float32)[None, :] * gain
    to_scale = tl.zeros((C,), dtype=tl.float32)
    to_weight = tl.zeros((C,), dtype=tl.float32)
    to_bias = tl.zeros((C,), dtype=tl.float32)
    for block in range(blocks):
        t = (tl.program_id(0).to(tl.int64) * blocks + block) * T + tl.arange(0, T)
        mask = (t < tokens)[:, None] & (c < channels)[None, :]
        at = t[:, None] * channels + c[None, :]
        kept = tl.load(drop + t // tokens_of_image, mask=t < tokens, other=0.0)[:, None]
        g = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
        to_bias += tl.sum(g, axis=0)
        to_weight += tl.sum(g * _centred(x, branch, kept * a, at, mask, channels), axis=0) * gain
        g *= w
        g = tl.where(mask, g - (tl.sum(g, axis=1) / channels)[:, None], 0.0)
        tl.store(grad_x + at, g.to(grad_x.dtype.element_ty), mask=mask)
        g *= kept
        to_scale += tl.sum(g * tl.load(branch + at, mask=mask, other=0.0).to(tl.float32), axis=0)
        tl.store(grad_branch + at, (g * a).to(grad_branch.dtype.element_ty), mask=mask)
    to = sums + tl.program_id(0).to(tl.int64) * 3 * channels + c
    tl.store(to, to_scale, mask=c < channels)
    tl.store(to + channels, to_weight, mask=c < channels)
    tl.store(to + 2 * channels, to_bias, mask=c < channels)


def _sizes(x: Tensor) -> tuple[int, int, int, int, int]:
    """Tokens, tokens of an image, channels, and the tokens and channels of a program's block."""
    n, height, width, channels = x.shape
    padded = triton.next_power_of_2(channels)
    return n * height * width, height * width, channels, max(1, ELEMENTS // padded), padded


def forward(x: Tensor, branch: Tensor, scale: Tensor, drop: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the norm of the weighted residual.

    Args:
        x: ``(batch, height, width, channels)``, contiguous.
        branch: like ``x``.
        scale: ``(channels,)``.
        drop: float32 ``(batch,)``.
        weight: ``(channels,)``.
        bias: ``(channels,)``.
    """
    out = torch.empty_like(x)
    tokens, of_image, channels, T, C = _sizes(x)
    gain = channels / (channels - 1)
    _forward[(triton.cdiv(tokens, T),)](
        x, branch, scale, drop, weight, bias, out, gain, tokens, of_image, channels, T, C
    )
    return out


def backward(
    grad: Tensor, x: Tensor, branch: Tensor, scale: Tensor, drop: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return gradients, from the result's gradient, which is contiguous.

    Returns:
        The gradients of x and of branch, and those of scale, weight and bias, ``(3, channels)``.
    """
    tokens, of_image, channels, T, C = _sizes(x)
    gain = channels / (channels - 1)
    blocks = triton.cdiv(TOKENS_OF_SUM, T)
    programs = triton.cdiv(tokens, T * blocks)
    grad_x, grad_branch = torch.empty_like(x), torch.empty_like(branch)
    sums = x.new_empty(programs, 3, channels, dtype=torch.float32)
    pointers = (grad, x, branch, scale, drop, weight, grad_x, grad_branch, sums)
    _backward[(programs,)](*pointers, gain, tokens, of_image, channels, blocks, T, C)
    return grad_x, grad_branch, sums.sum(dim=0).to(weight.dtype)
