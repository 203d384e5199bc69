"""Depthwise convolution whose weight gradient is fast on a CPU too."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.onednn import suits_onednn


class _CpuDepthwise(torch.autograd.Function):
    """A depthwise convolution whose three gradients are convolutions and sums.

    The gradient of the weights is where oneDNN's own backward spends its time. Here each channel of each image
    becomes a group of its own, with the incoming gradient as its kernel: a forward convolution, which is fast.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _convolve(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        x, weight, _ = inputs
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        grad_x = _convolve(grad, weight.flip(2, 3)) if ctx.needs_input_grad[0] else None
        grad_weight = _weight_gradient(x, grad, weight.shape[-1] // 2) if ctx.needs_input_grad[1] else None
        grad_bias = grad.sum(dim=(0, 2, 3)) if ctx.needs_input_grad[2] else None
        return grad_x, grad_weight, grad_bias


class _EagerCpuDepthwise(_CpuDepthwise):
    """The same with forward-mode derivatives, which torch.compile refuses to see in a function."""

    @staticmethod
    def jvp(ctx: Any, x_t: Tensor, weight_t: Tensor, bias_t: Tensor | None) -> Tensor:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        return _convolve(x_t, weight, bias_t) + _convolve(x, weight_t)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=weight.shape[0])


def _weight_gradient(x: Tensor, grad: Tensor, padding: int) -> Tensor:
    """``(channels, 1, k, k)`` from the input and the output's gradient, both ``(batch, channels, height, width)``."""
    batch, channels, height, width = grad.shape
    if batch == 0:
        return grad.new_zeros(channels, 1, 2 * padding + 1, 2 * padding + 1)
    padded = F.pad(x.contiguous(), (padding,) * 4)
    groups = batch * channels
    by_image = F.conv2d(
        # Not a view: a map of 1x1 counts as channels-last too, and padding may have chosen that.
        padded.reshape(1, groups, height + 2 * padding, width + 2 * padding),
        grad.reshape(groups, 1, height, width),
        groups=groups,
    )
    return by_image.view(batch, channels, 1, 2 * padding + 1, 2 * padding + 1).sum(dim=0)


class DepthwiseConv2d(nn.Conv2d):
    """One odd-sized kernel a channel, zero padding, map size kept; an ``nn.Conv2d`` in every respect but speed.

    Args:
        dim: channels.
        kernel_size: side of the kernels, odd.
        **factory: device and dtype of the parameters.
    """

    def __init__(self, dim: int, kernel_size: int, **factory: Any):
        super().__init__(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, dim, height, width)`` to the same shape."""
        return _depthwise(x, self.weight, self.bias)


@torch.fx.wrap  # one node of a traced graph: which operation is best depends on the tensor
def _depthwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if torch.is_grad_enabled() and suits_onednn(x):
        return _with_fast_gradients(x, weight, bias)
    return _convolve(x, weight, bias)


@torch.jit.unused
def _with_fast_gradients(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if torch.is_autocast_enabled("cpu"):
        # Cast here: the gradients are computed outside of autocast and want one precision.
        dtype = torch.get_autocast_dtype("cpu")
        x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype) if bias is not None else None
    function = _CpuDepthwise if torch.compiler.is_compiling() else _EagerCpuDepthwise
    return function.apply(x, weight, bias)
