"""How many images a GPU trains on at once with ``micro_batch_size=auto``, from the measured memory of a small step."""

import copy
import logging
import weakref
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.options.config import TrainConfig
from engine.runtime import Runtime
from models.kernels import set_kernels

log = logging.getLogger(__name__)

# With 256 images of 7 x 7 tokens, the products of a tiny model's last stage already have four 128 x 128 tiles for each
# core of an H100. More images at once gain little, and cost the loader memory and the first step time.
MOST = 256
SHARE = 0.8  # of the free memory; the rest is for fragments in torch's allocator and for what the count leaves out
RESERVED = 2 * 2**30  # bytes for DALI's decoder, which has an allocator of its own, and for workspaces of cuDNN
FEW, MORE = 4, 8  # images in the two measured steps


@dataclass(frozen=True)
class StepMemory:
    """Memory of a training step in bytes: ``fixed``, and ``per_image`` for each image of a micro-batch."""

    fixed: int
    per_image: int

    def of(self, images: int) -> int:
        """Return the bytes for a micro-batch."""
        return self.fixed + images * self.per_image


def fitting_micro_batch(cfg: TrainConfig, runtime: Runtime, model: nn.Module) -> int:
    """Return the most images that the GPUs of all processes can train on at once; the same on every process.

    Args:
        cfg: the settings.
        runtime: processes and device, which is a GPU. The processes exchange their numbers.
        model: the model, not yet on its device. It stays as it is.
    """
    free = torch.cuda.mem_get_info(runtime.device)[0]
    memory = step_memory(cfg, runtime, model)
    torch.cuda.empty_cache()  # the decoder needs memory too
    fits = most_images(memory, free, cfg.augment.inseparable)
    each = runtime.world.all_gather(torch.tensor([fits], dtype=torch.float64, device=runtime.device))
    images = int(each.min())
    need = f"{images} images at once need about {memory.of(images) / 2**30:.1f} of {free / 2**30:.1f} GiB on the GPU"
    log.info("micro_batch_size=auto: %s", need)
    if memory.of(images) > usable(free):
        log.warning(
            "%s, which may be too much: if the run ends for lack of memory, set model.grad_checkpointing=true%s, "
            "or use a larger GPU",
            need,
            " or a smaller augment.mix_group" if cfg.augment.mixes else "",
        )
    return images


def usable(free: int) -> float:
    """Return the bytes of free GPU memory that a training step may plan with."""
    return SHARE * free - RESERVED


def most_images(memory: StepMemory, free: int, mix_group: int) -> int:
    """Return the largest power of two that fits and is not over ``MOST``, rounded down to whole mix groups.

    The result is at least one group (without mixing, one image), even if that does not fit.

    Args:
        memory: what a step needs.
        free: free memory of the GPU in bytes.
        mix_group: images that must stay together.
    """
    images = MOST
    while images > 1 and memory.of(images) > usable(free):
        images //= 2
    return max(images // mix_group, 1) * mix_group


def step_memory(cfg: TrainConfig, runtime: Runtime, model: nn.Module) -> StepMemory:
    """Measure steps of a copy of the model with two small batches, and return the line through both.

    LipsFormers use plain operations here. These keep more than the Triton kernel does, but need no timing of
    both.
    """
    trained = copy.deepcopy(model).to(runtime.device).train()
    set_kernels(trained, "torch")
    for parameter in trained.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)  # counted below, together with weights and optimizer
    with torch.random.fork_rng([runtime.device] if runtime.device.type == "cuda" else []):
        few, more = (_peak(trained, images, cfg.data.crop, runtime) for images in (FEW, MORE))
    per_image = (more - few) // (MORE - FEW)
    weights = sum(p.numel() * p.element_size() for p in trained.parameters())
    copies = 4  # weights, gradients, the optimizer's two moments
    if cfg.ema is not None:
        copies += 1  # the moving average
    if cfg.optim.name == "adamw2":
        copies += 3  # its CUDA graph holds gradients, proposed steps and weights of its own
    return StepMemory(copies * weights + few - FEW * per_image, per_image)


def _peak(model: nn.Module, images: int, side: int, runtime: Runtime) -> int:
    """Return the largest number of bytes that a forward and backward pass on ``images`` images holds."""
    with _TensorBytes() as tensors:
        batch = runtime.laid_out(torch.zeros(images, 3, side, side, device=runtime.device))
        with runtime.autocast():
            logits = model(batch)
        F.cross_entropy(logits.float(), logits.new_zeros(images, dtype=torch.long)).backward()
    return tensors.peak


class _TensorBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, as long as these exist.

    It sees the backward pass too, with what gradient checkpointing computes again. It works on every device.

    Attributes:
        peak: the most bytes at any time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result) - _storages((args, kwargs)):  # views and changes in place make none
            self.now += storage.nbytes()
            weakref.finalize(storage, self._free, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _free(self, size: int) -> None:
        self.now -= size


def _storages(tree: Any) -> set[torch.UntypedStorage]:
    return {leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)}
