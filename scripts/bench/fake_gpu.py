"""Run a model's GPU path on fake tensors of the CPU.

Autograd cannot run on fake CUDA tensors if there is no GPU. So the tensors here claim to be on the CPU, and
:func:`as_on_a_gpu` makes the models, autocast and attention do there what they do on a GPU.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

aten = torch.ops.aten

# Autocast on GPUs computes these in float32, by casting the input or by setting `dtype`, or promotes to the widest
# input (ATen/autocast_mode.h). Autocast on CPUs does not.
CAST_TO_FLOAT32 = ("layer_norm", "group_norm", "exp", "log", "rsqrt", "reciprocal", "nll_loss", "pow.Tensor_Scalar")
FLOAT32_RESULT = ("softmax.int", "log_softmax.int", "sum", "sum.dim_IntList", "linalg_vector_norm", "cumsum", "prod")
PROMOTED = ("addcmul", "addcdiv")
UNCHANGED = ("cat", "stack")  # on CPUs autocast promotes their inputs


@contextmanager
def as_on_a_gpu(model: nn.Module) -> Iterator[None]:
    """Return a context in which tensors are fake and operations are those of a GPU. The model's parameters become fake.

    Autocast of the CPU then casts as that of the GPU does. The parameters stay fake afterwards.
    """
    library = torch.library.Library("aten", "IMPL")
    policies = {_cast: CAST_TO_FLOAT32, _with_dtype: FLOAT32_RESULT, _promote: PROMOTED, _unchanged: UNCHANGED}
    for policy, names in policies.items():
        for name in names:
            library.impl(name, _outside_autocast(policy, _overload(name)), "AutocastCPU")
    with ExitStack() as stack:
        stack.callback(library._destroy)
        stack.enter_context(patch("models.onednn._AVAILABLE", False))
        stack.enter_context(patch("models.depthwise.has_fast_gradients", lambda x: True))
        stack.enter_context(patch.object(F, "scaled_dot_product_attention", _fused_attention))
        stack.enter_context(patch.object(F, "rms_norm", _FusedRMSNorm.apply))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        for module in model.modules():
            for key, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[key] = nn.Parameter(torch.empty_like(parameter), parameter.requires_grad)
        yield


def _overload(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(aten, packet), overload or "default")


def _outside_autocast(policy: Callable[..., Tensor], operation: Any) -> Callable[..., Tensor]:
    def call(*args: Any, **kwargs: Any) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return policy(operation, *args, **kwargs)

    return call


def _cast(operation: Any, *args: Any, **kwargs: Any) -> Tensor:
    return operation(*(a.float() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args), **kwargs)


def _unchanged(operation: Any, *args: Any, **kwargs: Any) -> Tensor:
    return operation(*args, **kwargs)


def _with_dtype(operation: Any, *args: Any, **kwargs: Any) -> Tensor:
    return operation(*args, **{"dtype": torch.float32} | kwargs)


def _promote(operation: Any, *args: Any, **kwargs: Any) -> Tensor:
    widest = torch.float32 if any(a.dtype == torch.float32 for a in args) else args[0].dtype
    return operation(*(a.to(widest) for a in args), **kwargs)


class _FusedRMSNorm(torch.autograd.Function):
    """torch's fused kernels, which exist only for GPUs; elsewhere torch computes with several operations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: tuple[int, ...], weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _rms_norm(x, weight)[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return _rms_norm_backward(grad, *ctx.saved_tensors), None, None, None


@torch.library.custom_op("fake_gpu::rms_norm", mutates_args=())
def _rms_norm(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(x.shape[:-1], dtype=torch.float32)


@torch.library.custom_op("fake_gpu::rms_norm_backward", mutates_args=())
def _rms_norm_backward(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    return torch.empty_like(x)


_rms_norm.register_fake(lambda x, weight: (torch.empty_like(x), x.new_empty(x.shape[:-1], dtype=torch.float32)))
_rms_norm_backward.register_fake(lambda grad, x, weight: torch.empty_like(x))


def _fused_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """The kernels that torch takes on a GPU: memory-efficient attention with a mask, flash attention without."""
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
        attn_mask = attn_mask.to(dtype) if attn_mask is not None else None
    if attn_mask is None:
        return aten._scaled_dot_product_flash_attention(q, k, v, dropout_p, is_causal, scale=scale)[0]
    mask = mask_of_kernel(attn_mask, q)
    return aten._scaled_dot_product_efficient_attention(q, k, v, mask, True, dropout_p, is_causal, scale=scale)[0]


def mask_of_kernel(mask: Tensor, q: Tensor) -> Tensor:
    """The mask as the kernel takes it: with rows of 16 bytes, so torch pads it and passes a view for each image."""
    tokens = mask.shape[-1]
    return F.pad(mask, (0, -tokens % 8))[..., :tokens].expand(*q.shape[:-1], tokens)
