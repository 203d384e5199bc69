"""Evaluation of a checkpoint, from its settings to its last line."""

import json
import logging
import os
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from data import DeviceAugment, EvalPlan, Loader, build_backend, is_prepared, open_split, resolve_backend
from engine.checkpoint import checked, is_ours
from engine.config import MODEL_SCHEMA, EvalConfig
from engine.device import check_amp, choose_device, default_workers, tune
from engine.distributed import World
from engine.errors import UserError
from engine.log import log_to
from engine.scoring import Scores, evaluate
from models import build_model, load_weights, read_file, read_weights

log = logging.getLogger(__name__)


def open_trained(checkpoint: str | None) -> dict[str, Any] | None:
    """The content of one of our checkpoints, or None where the file holds bare weights of somebody else.

    Raises:
        UserError: if none is named or there is no such file.
        ModelError: if it cannot be read.
    """
    if checkpoint is None:
        raise UserError("no checkpoint: add checkpoint=PATH, such as outputs/quickstart/checkpoints/last.pt")
    path = Path(checkpoint)
    if not path.exists():
        raise UserError(f"there is no checkpoint {path}: set checkpoint=PATH to a file")
    content = read_file(path)
    return checked(content, path) if is_ours(content) else None


def implied_family(arguments: list[str]) -> list[str]:
    """The argument that gives a model the options of its checkpoint's family, where some are typed without ``model=``.

    Hydra refuses options that it does not know, before the checkpoint is read.

    Raises:
        UserError: or ModelError if the checkpoint cannot be read.
    """
    typed = {key.lstrip("+"): value for key, _, value in (argument.partition("=") for argument in arguments)}
    file = typed.get("checkpoint", "")
    if "model" in typed or not any(key.startswith("model.") for key in typed) or not Path(file).is_file():
        return []
    trained = open_trained(file)
    return [f"{MODEL_SCHEMA}={trained['family']}"] if trained else []


def evaluate_checkpoint(cfg: EvalConfig, trained: dict[str, Any] | None) -> Scores:
    """Score a checkpoint on the images of ``data.split`` and write the scores.

    Args:
        cfg: the settings.
        trained: the checkpoint's content, where it is one of ours.

    Raises:
        UserError: or another of ``engine.errors.USER_ERRORS`` if it cannot be done as asked.
    """
    world = World.from_environment()
    device = choose_device(cfg.device, world.local_rank)
    check_amp(cfg.amp, device)
    tune(device)
    log_to(None, world.is_main)
    _refuse_unwritable(Path(cfg.output))
    classes = trained["classes"] if trained else None
    known = len(classes) if classes else cfg.model.num_classes
    splits = (cfg.data.split,)
    world.first_on_machine(
        lambda: open_split(cfg.data, cfg.data.split, known, classes), lambda: is_prepared(cfg.data, splits)
    )
    images = open_split(cfg.data, cfg.data.split, known, classes)
    num_classes = known or images.num_classes
    model = build_model(cfg.model, num_classes, cfg.data.crop)
    load_weights(model, _weights(cfg, trained), str(cfg.checkpoint))
    model = model.to(device)
    memory_format = torch.channels_last if cfg.channels_last else torch.contiguous_format
    network = cast(nn.Module, torch.compile(model)) if cfg.compile else model
    augment = DeviceAugment(cfg.data.mean, cfg.data.std, num_classes).to(device)
    workers = cfg.max_workers if cfg.max_workers is not None else default_workers(world.local_size)
    kind = resolve_backend(cfg.data, device)
    backend = build_backend(kind, images.index, cfg.data, device, workers, cfg.eval.batch_size)
    with world.joined(device):
        loader = Loader(backend, images.labels, device)
        batches = loader.evaluate(EvalPlan(images.index, cfg.data), cfg.eval.batch_size, world.size, world.rank)
        scores = evaluate(network, batches, augment, world, device, cfg.amp, memory_format)
    if world.is_main:
        _report(cfg, scores, kind)
    return scores


def _weights(cfg: EvalConfig, trained: dict[str, Any] | None) -> dict[str, Tensor]:
    averaged = cfg.eval.weights == "ema"
    if trained is None:
        return read_weights(str(cfg.checkpoint), averaged)
    return trained["ema" if averaged and trained["ema"] is not None else "model"]


def _refuse_unwritable(path: Path) -> None:
    """Better said before the evaluation than after it."""
    folder = path.resolve().parent
    if path.is_dir() or not folder.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        raise UserError(f"output={path} cannot be written: set output to another file")


def _report(cfg: EvalConfig, scores: Scores, backend: str) -> None:
    path = Path(cfg.output)
    content = {"checkpoint": str(cfg.checkpoint), "data": cfg.data.name, "split": cfg.data.split}
    path.write_text(json.dumps(content | scores.as_dict(), indent=1) + "\n")
    log.info("%s on %d images of %s (read by %s)", cfg.checkpoint, scores.images, cfg.data.name, backend)
    log.info("top-1 %.2f %%, top-5 %.2f %%, loss %.4f", scores.top1, scores.top5, scores.loss)
    log.info("written to %s", os.path.relpath(path))
