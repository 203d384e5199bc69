"""What a model with BatchNorm asks of a run: shared statistics, and more than one image at a time."""

import copy
from contextlib import suppress

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from data import BatchGeometry
from engine.distributed import World
from engine.errors import UserError


def wants_sync_bn(chosen: bool | None, model: nn.Module, world: World, device: torch.device) -> bool:
    """Whether batch statistics are shared; by default wherever there are any, and torch can.

    Raises:
        UserError: if they are to be shared and cannot be.
    """
    if world.size == 1 or not _has_batch_norm(model):
        return False
    if chosen and device.type != "cuda":
        raise UserError("sync_bn=true needs GPUs: leave it null, or run a single process with device=cpu")
    return device.type == "cuda" if chosen is None else chosen


def refuse_lone_images(model: nn.Module, geometry: BatchGeometry, side: int) -> None:
    """Raise where a micro-batch is a single image and BatchNorm has nothing to compare it with.

    Args:
        model: any image model.
        geometry: how the global batch is cut.
        side: of the images, in pixels.

    Raises:
        UserError: that says which sizes do.
    """
    sizes = geometry.sizes()
    if min(sizes) > 1 or not _has_batch_norm(model):
        return
    try:  # a layer that sees more than one place of an image has enough
        with suppress(NotImplementedError, RuntimeError), torch.no_grad():  # not every model runs on the meta device
            copy.deepcopy(model).to("meta").train()(torch.empty(1, 3, side, side, device="meta"))
    except ValueError as error:
        cut = " + ".join(map(str, sizes))
        group, whole = geometry.mix_group, geometry.batch_size - 1
        raise UserError(
            f"batch_size={geometry.batch_size} is cut into {cut} images, and BatchNorm cannot train on one: "
            f"set batch_size to a multiple of augment.mix_group={group}" + (f", or to {whole}" if whole > 1 else "")
        ) from error


def _has_batch_norm(model: nn.Module) -> bool:
    return any(isinstance(module, _BatchNorm) for module in model.modules())
