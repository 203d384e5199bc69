"""Run a model's GPU path on fake tensors of the CPU, and count the launches, bytes and FLOPs of every operation.

Autograd cannot run on fake CUDA tensors if there is no GPU. So the tensors here claim to be on the CPU, and
:func:`as_on_a_gpu` makes the models, autocast and attention do there what they do on a GPU.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.module_tracker import ModuleTracker

aten = torch.ops.aten

# --- the GPU path ---------------------------------------------------------------------------------------------------

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


# --- counting -------------------------------------------------------------------------------------------------------

# Like views, they launch nothing.
FREE = ("empty", "new_empty", "view", "detach", "alias", "_unsafe_view", "reshape")
WRITE_ONLY = ("copy_", "zero_", "fill_", "normal_", "uniform_", "bernoulli_", "random_")
# One launch of a foreach kernel takes at most so many tensors, by the number of lists, and so many blocks of BLOCK
# elements (MultiTensorApply.cuh).
TENSORS_AT_ONCE = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}
BLOCKS_AT_ONCE, BLOCK = 320, 65536
# Launches inside an operator of ours, beside the first: it adds up the sums of its programs.
INSIDE = {"residual_center_norm_backward": 1}


@dataclass
class Cost:
    """What operations ask of a GPU.

    Attributes:
        launches: kernels.
        bytes: bytes read and written.
        flops: floating-point operations of products, convolutions and attention.
    """

    launches: int = 0
    bytes: int = 0
    flops: int = 0

    def __iadd__(self, other: "Cost") -> "Cost":
        self.launches += other.launches
        self.bytes += other.bytes
        self.flops += other.flops
        return self


@dataclass(frozen=True)
class Operation:
    """An operation of a step, with the stage and the part that it belongs to, and its cost."""

    stage: str
    part: str
    name: str
    cost: Cost


class CostCounter(TorchDispatchMode):
    """Adds up the costs of operations by the part of the step that they belong to.

    Args:
        model: its modules' classes name the parts of the forward and backward pass.
        parts: pairs of a word and a part. A module belongs to the first part whose word is in the name of its class. An
            operation belongs to the innermost module with a part.

    Attributes:
        stage: the part of operations outside the model's modules.
        operations: every operation so far.
    """

    def __init__(self, model: nn.Module, parts: tuple[tuple[str, str], ...]):
        super().__init__()
        root = type(model).__name__
        named = {f"{root}.{name}" if name else root: module for name, module in model.named_modules()}
        self.part_of = {name: _part(type(module).__name__, parts) for name, module in named.items()}
        self.tracker = ModuleTracker()
        self.stage = ""
        self.operations: list[Operation] = []

    def __enter__(self) -> "CostCounter":
        self.tracker.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.tracker.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if func.namespace != "prim" and not func.is_view and not name.startswith(FREE):
            cost = _cost(func, name, args, kwargs or {}, result)
            self.operations.append(Operation(self.stage, self._part(), name, cost))
        return result

    def _part(self) -> str:
        inside = sorted((name for name in self.tracker.parents if name in self.part_of), key=len, reverse=True)
        return next((self.part_of[name] for name in inside if self.part_of[name]), "")


def _part(kind: str, parts: tuple[tuple[str, str], ...]) -> str:
    return next((part for word, part in parts if word in kind), "")


def _cost(func: Any, name: str, args: Any, kwargs: Any, result: Any) -> Cost:
    read = [a for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)]
    written = [r for r in tree_leaves(result) if isinstance(r, Tensor)]
    if name.startswith(("_foreach", "_fused")):
        written = written or read  # they return nothing and change their arguments
    if name.startswith("new_") or name.endswith("_like"):
        read = []
    elif name in WRITE_ONLY:
        read = read[1:]
    moved = sum(map(_bytes, read)) + sum(map(_bytes, written))
    launches = _launches(name, args, written) + INSIDE.get(name, 0)
    return Cost(launches, moved, _flops(func, name, args, kwargs, result))


def _flops(func: Any, name: str, args: Any, kwargs: Any, result: Any) -> int:
    if name == "convolution_backward":  # torch's formula does not know groups
        grad, _, weight = args[:3]
        gradients = sum(part is not None for part in result[:2])
        return 2 * gradients * grad.numel() * math.prod(weight.shape[1:])
    formula = flop_registry.get(func.overloadpacket)
    return formula(*args, **kwargs, out_val=result) if formula else 0


def _launches(name: str, args: Any, written: list[Tensor]) -> int:
    if name == "convolution_backward":
        return len(written)  # gradients of input, weight and bias
    lists = [a for a in args if isinstance(a, (list, tuple)) and a and isinstance(a[0], Tensor)]
    if not name.startswith(("_foreach", "_fused")) or not lists:
        return 1
    blocks = sum(math.ceil(tensor.numel() / BLOCK) for tensor in lists[0])
    at_once = TENSORS_AT_ONCE[min(5, len(lists) + (not name.endswith("_")))]
    return max(math.ceil(len(lists[0]) / at_once), math.ceil(blocks / BLOCKS_AT_ONCE))


def _bytes(tensor: Tensor) -> int:
    """The size in memory. Expanded dimensions have no memory of their own."""
    stored = (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride != 0)
    return math.prod(stored) * tensor.element_size()
