"""Depthwise convolution whose gradients are fast on CPUs and GPUs."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from models.errors import ModelError
from models.onednn import suits_onednn


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution whose gradients are computed by forward convolutions and sums.

    The gradient of the input is a forward convolution with the turned kernel. This takes cuDNN half the time of its own
    gradient. On a CPU the weight's gradient is a forward convolution, too: each channel of each image becomes a
    separate group, and the incoming gradient is its kernel. oneDNN's own gradient is slow.
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
        grad_weight = _weight_gradient(x, grad, weight) if ctx.needs_input_grad[1] else None
        grad_bias = grad.sum(dim=(0, 2, 3)) if ctx.needs_input_grad[2] else None
        return grad_x, grad_weight, grad_bias


class _EagerDepthwise(_Depthwise):
    """Adds forward-mode derivatives. torch.compile refuses a function with ``jvp``, so it uses the base class."""

    @staticmethod
    def jvp(ctx: Any, x_t: Tensor, weight_t: Tensor, bias_t: Tensor | None) -> Tensor:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        return _convolve(x_t, weight, bias_t) + _convolve(x, weight_t)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=weight.shape[0])


def _weight_gradient(x: Tensor, grad: Tensor, weight: Tensor) -> Tensor:
    """``(channels, 1, k, k)`` from the input and the output's gradient, both ``(batch, channels, height, width)``."""
    padding = weight.shape[-1] // 2
    if not suits_onednn(grad):
        return conv2d_weight(x, weight.shape, grad, padding=padding, groups=len(weight))
    batch, channels, height, width = grad.shape
    if batch == 0:
        return grad.new_zeros(channels, 1, 2 * padding + 1, 2 * padding + 1)
    padded = F.pad(x.contiguous(), (padding,) * 4)
    groups = batch * channels
    by_image = F.conv2d(
        # reshape, not view: a 1x1 map also counts as channels-last, and F.pad may return it in that layout.
        padded.reshape(1, groups, height + 2 * padding, width + 2 * padding),
        grad.reshape(groups, 1, height, width),
        groups=groups,
    )
    return by_image.view(batch, channels, 1, 2 * padding + 1, 2 * padding + 1).sum(dim=0)


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise ``nn.Conv2d`` with an odd kernel and zero padding that keeps the map size. Only its speed differs.

    Args:
        dim: channels.
        kernel_size: side of the kernels, odd.
        **factory: device and dtype of the parameters.

    Raises:
        ModelError: if the kernel size is even.
    """

    def __init__(self, dim: int, kernel_size: int, **factory: Any):
        if kernel_size % 2 == 0:
            raise ModelError(f"kernel_size={kernel_size} of a depthwise convolution must be odd")
        super().__init__(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, dim, height, width)`` to the same shape."""
        return _depthwise(x, self.weight, self.bias)


def has_fast_gradients(x: Tensor) -> bool:
    """Whether forward convolutions make the gradients faster: on GPUs, and with oneDNN.

    Exported and scripted programs keep the plain operation.
    """
    if torch.jit.is_scripting():  # TorchScript does not compile the other branch
        return False
    else:
        return suits_onednn(x) or (x.is_cuda and not torch.compiler.is_exporting())


@torch.fx.wrap  # FX traces it as one node, because the fastest operation depends on the tensor
def _depthwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if torch.is_grad_enabled() and has_fast_gradients(x):
        return _with_fast_gradients(x, weight, bias)
    return _convolve(x, weight, bias)


@torch.jit.unused
def _with_fast_gradients(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if torch.is_autocast_enabled(x.device.type):
        # Cast here: autocast is off in the backward pass, where all tensors must have one dtype.
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype) if bias is not None else None
    function = _Depthwise if torch.compiler.is_compiling() else _EagerDepthwise
    return function.apply(x, weight, bias)
