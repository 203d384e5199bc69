"""The Triton kernels as torch operators with gradients.

torch.compile, DDP and fake tensors see each as one opaque operation. Triton is imported by the first call.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

# --- what layers call; TorchScript leaves it out ----------------------------------------------------------------------


@torch.jit.unused
def depthwise_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``GELU(DWConv(x) + bias)``; see :func:`models.kernels.triton_convolution.forward`."""
    return _depthwise_gelu(x.contiguous(), weight, bias)


@torch.jit.unused
def depthwise_gelu_residual(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, drop: Tensor) -> Tensor:
    """``x + drop · scale · GELU(DWConv(x) + bias)``; see :func:`models.kernels.triton_convolution.forward`."""
    return _depthwise_gelu_residual(x.contiguous(), weight, bias, scale, drop)


@torch.jit.unused
def residual_center_norm(
    x: Tensor, branch: Tensor, scale: Tensor, drop: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """CenterNorm of ``x + drop · scale · branch``; see :func:`models.kernels.triton_norm.forward`."""
    return _residual_center_norm(x.contiguous(), branch.contiguous(), scale, drop, weight, bias)


def _current(x: Tensor) -> AbstractContextManager:
    """Make the tensor's GPU the current one, because Triton launches kernels there."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


# --- operators --------------------------------------------------------------------------------------------------------


@torch.library.custom_op("coldstart::depthwise_gelu", mutates_args=())
def _depthwise_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    from models.kernels.triton_convolution import forward

    with _current(x):
        return forward(x, weight, bias, None, None)


@torch.library.custom_op("coldstart::depthwise_gelu_backward", mutates_args=())
def _depthwise_gelu_backward(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    from models.kernels.triton_convolution import backward

    with _current(x):
        return backward(grad, x, weight, bias, None, None)


@torch.library.custom_op("coldstart::depthwise_gelu_residual", mutates_args=())
def _depthwise_gelu_residual(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, drop: Tensor) -> Tensor:
    from models.kernels.triton_convolution import forward

    with _current(x):
        return forward(x, weight, bias, scale, drop)


@torch.library.custom_op("coldstart::depthwise_gelu_residual_backward", mutates_args=())
def _depthwise_gelu_residual_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, drop: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    from models.kernels.triton_convolution import backward

    with _current(x):
        return backward(grad, x, weight, bias, scale, drop)


@torch.library.custom_op("coldstart::residual_center_norm", mutates_args=())
def _residual_center_norm(
    x: Tensor, branch: Tensor, scale: Tensor, drop: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    from models.kernels.triton_norm import forward

    with _current(x):
        return forward(x, branch, scale, drop, weight, bias)


@torch.library.custom_op("coldstart::residual_center_norm_backward", mutates_args=())
def _residual_center_norm_backward(
    grad: Tensor, x: Tensor, branch: Tensor, scale: Tensor, drop: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    from models.kernels.triton_norm import backward

    with _current(x):
        return backward(grad, x, branch, scale, drop, weight)


# --- shapes for fake tensors, and gradients ---------------------------------------------------------------------------


def _like_first(first: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(first)


def _backward_of_convolution_like(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, *others: Any) -> Any:
    return torch.empty_like(x), torch.empty_like(weight), bias.new_empty(2, len(bias))


def _backward_of_norm_like(grad: Tensor, x: Tensor, branch: Tensor, scale: Tensor, *others: Any) -> Any:
    return torch.empty_like(x), torch.empty_like(branch), scale.new_empty(3, len(scale))


_depthwise_gelu.register_fake(_like_first)
_depthwise_gelu_residual.register_fake(_like_first)
_residual_center_norm.register_fake(_like_first)
_depthwise_gelu_backward.register_fake(_backward_of_convolution_like)
_depthwise_gelu_residual_backward.register_fake(_backward_of_convolution_like)
_residual_center_norm_backward.register_fake(_backward_of_norm_like)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward_of_gelu(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_x, grad_weight, sums = _depthwise_gelu_backward(grad.contiguous(), *ctx.saved_tensors)
    return grad_x, grad_weight, sums[0]


def _backward_of_residual(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_x, grad_weight, sums = _depthwise_gelu_residual_backward(grad.contiguous(), *ctx.saved_tensors)
    return grad_x, grad_weight, sums[0], sums[1], None


def _backward_of_norm(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, branch, scale, drop, weight, _ = ctx.saved_tensors
    found = _residual_center_norm_backward(grad.contiguous(), x, branch, scale, drop, weight)
    grad_x, grad_branch, sums = found
    return grad_x, grad_branch, sums[0], None, sums[1], sums[2]


_depthwise_gelu.register_autograd(_backward_of_gelu, setup_context=_save)
_depthwise_gelu_residual.register_autograd(_backward_of_residual, setup_context=_save)
_residual_center_norm.register_autograd(_backward_of_norm, setup_context=_save)
