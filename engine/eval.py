"""Evaluation of a checkpoint, from its settings to its last line."""

import logging
from typing import Any, cast

import torch
from torch import nn

from data import (
    IMAGENET_CLASSES,
    DeviceAugment,
    EvalImages,
    EvalPlan,
    Loader,
    build_backend,
    is_prepared,
    is_set_prepared,
    open_set,
    open_split,
    refuse_other_than_imagenet,
    resolve_backend,
)
from engine.config import EvalConfig
from engine.device import check_amp, choose_device, default_workers, tune
from engine.distributed import World
from engine.errors import RunStopped
from engine.eval_report import refuse_unwritable, write_scores, write_sets
from engine.log import log_to
from engine.scoring import Scores, evaluate
from engine.trained import trained_model

log = logging.getLogger(__name__)


def evaluate_checkpoint(cfg: EvalConfig, trained: dict[str, Any] | None) -> dict[str, Scores]:
    """Score a checkpoint on the images of ``data.split``, or on the sets that ``sets`` names, and write the scores.

    Args:
        cfg: the settings.
        trained: the checkpoint's content, where it is one of ours.

    Returns:
        The scores on each set.

    Raises:
        UserError: or another of ``engine.errors.USER_ERRORS`` if it cannot be done as asked.
        RunStopped: if the model gave logits that are not finite; the scores are written.
    """
    world = World.from_environment()
    device = choose_device(cfg.device, world.local_rank)
    check_amp(cfg.amp, device)
    tune(device)
    log_to(None, world.is_main)
    refuse_unwritable(cfg)
    sets, num_classes = _open_images(cfg, trained, world)
    model = trained_model(cfg, trained, num_classes).to(device)
    network = cast(nn.Module, torch.compile(model)) if cfg.compile else model
    augment = DeviceAugment(cfg.data.mean, cfg.data.std, num_classes).to(device)
    scores = {}
    with world.joined(device):
        for name, images in sets.items():
            scores[name] = _score(network, images, augment, cfg, world, device)
            if len(sets) > 1:
                log.info("%s: top-1 %.2f %%", images.data.name, scores[name].top1)
    if world.is_main and cfg.sets.folders():
        write_sets(cfg, scores)
    elif world.is_main:
        write_scores(cfg, scores[cfg.data.name], resolve_backend(cfg.data))
    if any(found.not_finite for found in scores.values()):
        raise RunStopped(f"{cfg.checkpoint}: the model gives answers that are not finite, see {cfg.output}", 1)
    return scores


def _open_images(cfg: EvalConfig, trained: dict[str, Any] | None, world: World) -> tuple[dict[str, EvalImages], int]:
    """The images of each set, and the number of classes the model needs."""
    classes = trained["classes"] if trained else None
    known = len(classes) if classes else cfg.model.num_classes
    if wanted := cfg.sets.folders():
        refuse_other_than_imagenet(known, classes)

        def open_all() -> dict[str, EvalImages]:
            return {name: open_set(name, cfg.sets, cfg.data) for name in wanted}

        world.first_on_machine(open_all, lambda: all(is_set_prepared(name, cfg.sets, cfg.data) for name in wanted))
        return open_all(), IMAGENET_CLASSES
    split = cfg.data.split
    world.first_on_machine(lambda: open_split(cfg.data, split, known, classes), lambda: is_prepared(cfg.data, [split]))
    images = open_split(cfg.data, split, known, classes)
    return {cfg.data.name: EvalImages(cfg.data, images.source, images.labels)}, known or images.num_classes


def _score(
    network: nn.Module, images: EvalImages, augment: DeviceAugment, cfg: EvalConfig, world: World, device: torch.device
) -> Scores:
    workers = cfg.max_workers if cfg.max_workers is not None else default_workers(world.local_size)
    kind = resolve_backend(images.data)
    backend = build_backend(kind, images.source, images.data, device, workers, cfg.eval.batch_size, world.local_size)
    loader = Loader(backend, images.answers, device)
    batches = loader.evaluate(EvalPlan(images.index, images.data), cfg.eval.batch_size, world.size, world.rank)
    memory_format = torch.channels_last if cfg.channels_last else torch.contiguous_format
    classes = torch.from_numpy(images.classes) if images.classes is not None else None
    return evaluate(network, batches, augment, world, device, cfg.amp, memory_format, classes)
