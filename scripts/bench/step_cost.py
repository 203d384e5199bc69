"""What a training step asks of a GPU, counted without one: launches, bytes and FLOPs, by part of the model."""

import math
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.module_tracker import ModuleTracker

from engine.device import AMP_DTYPES
from engine.measuring.gpus import GPUS
from models.kernels import set_kernels
from scripts.bench.fake_gpu import as_on_a_gpu
from scripts.bench.training_step import optimizer

CLIP = 5.0
# The part of a step that a module belongs to: the first one whose word is in the name of its class.
PARTS = (
    ("Embed", "stem"),
    ("Stem", "stem"),
    ("Norm", "norms"),
    ("Merg", "merging"),
    ("Attention", "attention"),
    ("Mlp", "MLP"),
    ("Conv", "convolutions"),
    ("Residual", "residuals and norms"),
    ("DropPath", "residuals and norms"),
    ("Block", "residuals and norms"),
)
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


def traced(model: nn.Module, side: int, batch_size: int, amp: str, optim: str, kernels: str) -> CostCounter:
    """Return the counter of a model's training step: forward, backward, clipping and optimizer.

    Args:
        model: any image model. It cannot be used afterwards.
        side: side of its images in pixels.
        batch_size: images of a step.
        amp: one of ``AMP_DTYPES``.
        optim: ``adamw`` or ``adamw2``.
        kernels: ``triton`` or ``torch``, see :func:`models.kernels.set_kernels`.
    """
    model.train()
    with patch("models.kernels.choice.suits_triton", lambda device: True), as_on_a_gpu(model):
        set_kernels(model, kernels)
        steps = optimizer(optim, model)
        images = torch.empty(batch_size, 3, side, side)
        counter = CostCounter(model, PARTS)
        for _ in range(2):  # the optimizer's first step makes its state
            counter.operations.clear()
            _step(model, images, steps, AMP_DTYPES[amp], counter)
    return counter


def _step(
    model: nn.Module,
    images: torch.Tensor,
    steps: torch.optim.Optimizer,
    dtype: torch.dtype,
    counter: CostCounter,
) -> None:
    with counter:
        counter.stage = "forward"
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), torch.empty_like(logits, dtype=torch.float32))
        counter.stage = "backward"
        loss.backward()
        counter.stage = "clipping"
        nn.utils.clip_grad_norm_(model.parameters(), CLIP, foreach=True)
        counter.stage = "optimizer"
        steps.step()
        steps.zero_grad()


def milliseconds(counter: CostCounter, gpu: str, stage: str = "all", part: str = "") -> float:
    """Return the least time of the step or of a part: each operation takes its bytes or its FLOPs at the GPU's peak."""
    peak = GPUS[gpu]
    chosen = (o.cost for o in counter.operations if stage == "all" or (o.stage, o.part) == (stage, part))
    return 1e3 * sum(max(cost.bytes / peak.bandwidth, cost.flops / peak.flops) for cost in chosen)
