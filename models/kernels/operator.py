"""The Triton kernel as a torch operator with gradients.

torch.compile, DDP and fake tensors see it as one opaque operation. Triton is imported by the first call.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


@torch.jit.unused  # TorchScript leaves it out
def residual_center_norm(
    x: Tensor, branch: Tensor, scale: Tensor, drop: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """CenterNorm of ``x + drop · scale · branch``; see :func:`models.kernels.triton_norm.forward`."""
    return _forward(x.contiguous(), branch.contiguous(), scale, drop, weight, bias)


def _current(x: Tensor) -> AbstractContextManager:
    """Make the tensor's GPU the current one, because Triton launches kernels there."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


@torch.library.custom_op("coldstart::residual_center_norm", mutates_args=())
def _forward(x: Tensor, branch: Tensor, scale: Tensor, drop: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    from models.kernels.triton_norm import forward

    with _current(x):
        return forward(x, branch, scale, drop, weight, bias)


@torch.library.custom_op("coldstart::residual_center_norm_backward", mutates_args=())
def _backward(
    grad: Tensor, x: Tensor, branch: Tensor, scale: Tensor, drop: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    from models.kernels.triton_norm import backward

    with _current(x):
        return backward(grad, x, branch, scale, drop, weight)


# --- shapes for fake tensors, and gradients ---------------------------------------------------------------------------


@_forward.register_fake
def _(x: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(x)


@_backward.register_fake
def _(grad: Tensor, x: Tensor, branch: Tensor, scale: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(branch), scale.new_empty(3, len(scale))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, branch, scale, drop, weight, _ = ctx.saved_tensors
    grad_x, grad_branch, sums = _backward(grad.contiguous(), x, branch, scale, drop, weight)
    return grad_x, grad_branch, sums[0], None, sums[1], sums[2]


_forward.register_autograd(_gradients, setup_context=_save)
