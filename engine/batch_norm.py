"""Two needs of models with BatchNorm: statistics shared between processes, and more than one image in a batch."""

import copy
from contextlib import suppress

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from data import BatchGeometry
from engine.errors import UserError
from engine.processes.distributed import World


def wants_sync_bn(chosen: bool | None, model: nn.Module, world: World, device: torch.device) -> bool:
    """Whether processes share BatchNorm's batch statistics.

    By default they do if the model has BatchNorm and the device is a GPU: torch's SyncBatchNorm needs GPUs.

    Raises:
        UserError: if the user chose to share them and the device is not a GPU.
    """
    if world.size == 1 or not has_batch_norm(model):
        return False
    if chosen and device.type != "cuda":
        raise UserError("sync_bn=true needs GPUs: leave it null, or run a single process with device=cpu")
    return device.type == "cuda" if chosen is None else chosen


def refuse_lone_images(model: nn.Module, geometry: BatchGeometry, side: int) -> None:
    """Refuse a batch size that leaves BatchNorm with a single value for each channel.

    This happens if a micro-batch is a single image and a BatchNorm layer sees only one position of it.

    Args:
        model: any image model.
        geometry: how the global batch is split into micro-batches.
        side: side of the images in pixels.

    Raises:
        UserError: if the model cannot train with these sizes. The message suggests batch sizes that work.
    """
    sizes = geometry.sizes()
    if min(sizes) > 1 or not has_batch_norm(model):
        return
    try:  # torch raises ValueError for a layer that gets only one value per channel
        with suppress(RuntimeError), torch.no_grad():  # some models cannot run on the meta device
            copy.deepcopy(model).to("meta").train()(torch.empty(1, 3, side, side, device="meta"))
    except ValueError as error:
        cut = " + ".join(map(str, sizes))
        group, processes = geometry.mix_group, geometry.world_size
        if group > 1:
            advice = f"set batch_size to a multiple of augment.mix_group={group}, {group * processes} or more"
        else:
            advice = f"set batch_size={2 * processes} or more, and micro_batch_size=4 or more"
        raise UserError(
            f"batch_size={geometry.batch_size} is split into {cut} images, but BatchNorm cannot train on one image: "
            + advice
        ) from error


def has_batch_norm(model: nn.Module) -> bool:
    """Whether a model has a layer with BatchNorm."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())
