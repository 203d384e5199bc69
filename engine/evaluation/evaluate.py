"""Evaluate a checkpoint: open the images, score the model and write the results."""

import logging
import os
from typing import Any

import torch
from torch import nn

from data import (
    IMAGENET_CLASSES,
    DeviceAugment,
    EvalImages,
    EvalPlan,
    Loader,
    build_backend,
    class_names,
    is_prepared,
    is_set_prepared,
    open_set,
    open_split,
    refuse_other_than_imagenet,
    resolve_backend,
)
from engine.checkpoints.saved_model import trained_model
from engine.compiling import Compiler
from engine.errors import RunStopped
from engine.evaluation.predictions import Predictions, write_predictions
from engine.evaluation.score_files import predictions_path, refuse_unwritable, write_scores, write_sets
from engine.evaluation.scoring import Scores, score
from engine.options.config import EvalConfig
from engine.processes.distributed import World
from engine.runtime import Runtime

log = logging.getLogger(__name__)


def evaluate_checkpoint(cfg: EvalConfig, trained: dict[str, Any] | None) -> dict[str, Scores]:
    """Score a checkpoint on ``data.split``, or on the sets named in ``sets``, and write the scores.

    Args:
        cfg: the settings.
        trained: the content of a checkpoint of this project; None for other files.

    Returns:
        The scores on each set.

    Raises:
        UserError: or another of ``engine.errors.USER_ERRORS``, if the settings do not work.
        RunStopped: if the model gave logits that are not finite. The scores are written first.
    """
    runtime = Runtime.start(cfg)
    world = runtime.world
    refuse_unwritable(cfg)
    sets, num_classes = _open_images(cfg, trained, world)
    model = trained_model(cfg, trained, num_classes).to(runtime.device)
    network = Compiler(cfg, runtime.device).wrap(model, cfg.eval.batch_size)
    augment = DeviceAugment(cfg.data.mean, cfg.data.std, num_classes).to(runtime.device)
    scores, answers = {}, {}
    with world.joined(runtime.device):
        for name, images in sets.items():
            predictions = Predictions() if cfg.predictions is not None else None
            scores[name] = _score(network, images, augment, cfg, runtime, predictions)
            answers[name] = predictions.of_all(world) if predictions is not None else None
            if len(sets) > 1:
                log.info("%s: top-1 %.2f %%", images.data.name, scores[name].top1)
    if world.is_main and cfg.sets.folders():
        write_sets(cfg, scores)
    elif world.is_main:
        write_scores(cfg, scores[cfg.data.name], resolve_backend(cfg.data))
    for name, answer in answers.items():  # the scores are written already: an error here cannot lose them
        if answer is not None:
            path = predictions_path(cfg, name)
            write_predictions(path, sets[name], *answer, _names(sets[name], cfg, trained, num_classes))
            log.info("the predictions are in %s", os.path.relpath(path))
    if any(found.not_finite for found in scores.values()):
        raise RunStopped(f"{cfg.checkpoint}: the outputs of the model are not finite, see {cfg.output}", 1)
    return scores


def _open_images(cfg: EvalConfig, trained: dict[str, Any] | None, world: World) -> tuple[dict[str, EvalImages], int]:
    """Return the images of each set, and the number of classes that the model needs."""
    classes = trained["classes"] if trained else None
    known = len(classes) if classes else cfg.model.num_classes
    if wanted := cfg.sets.folders():
        refuse_other_than_imagenet(known, classes)

        def open_all() -> dict[str, EvalImages]:
            return {name: open_set(name, cfg.sets, cfg.data) for name in wanted}

        world.first_on_machine(open_all, lambda: all(is_set_prepared(name, cfg.sets, cfg.data) for name in wanted))
        return open_all(), IMAGENET_CLASSES
    split = cfg.data.split
    world.first_on_machine(
        lambda: open_split(cfg.data, split, known, classes, says=False), lambda: is_prepared(cfg.data, [split])
    )
    images = open_split(cfg.data, split, known, classes)
    return {cfg.data.name: EvalImages(cfg.data, images.source, images.labels)}, known or images.num_classes


def _score(
    network: nn.Module,
    images: EvalImages,
    augment: DeviceAugment,
    cfg: EvalConfig,
    runtime: Runtime,
    predictions: Predictions | None,
) -> Scores:
    world, size = runtime.world, cfg.eval.batch_size
    kind, workers = resolve_backend(images.data), runtime.workers(cfg.max_workers)
    backend = build_backend(kind, images.source, images.data, runtime.device, workers, size, world.local_size)
    loader = Loader(backend, images.answers, runtime.device)
    batches = loader.evaluate(EvalPlan(images.index, images.data), size, world.size, world.rank)
    classes = torch.from_numpy(images.classes) if images.classes is not None else None
    return score(network, batches, augment, runtime, classes, predictions.add if predictions is not None else None)


def _names(images: EvalImages, cfg: EvalConfig, trained: dict[str, Any] | None, num_classes: int) -> list[str]:
    """Return the name of each class: from the checkpoint, else ImageNet's, else from the class folders."""
    if trained is not None:
        return trained["classes"]
    if cfg.sets.folders():
        return class_names(num_classes, {})
    targets = zip(images.answers.tolist(), images.index.targets.tolist(), strict=True)
    return class_names(num_classes, {label: images.index.classes[folder] for label, folder in set(targets)})
