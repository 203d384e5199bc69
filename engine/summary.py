"""Log the plan of a run before it trains, and its results afterwards."""

import logging
import os
import shlex
from typing import Any

from engine.device import device_name
from engine.evaluation.scoring import Scores
from engine.options.recipe import described
from engine.run import Run
from engine.run_dir import RunDirectory
from optim import peak_lr

log = logging.getLogger(__name__)


def describe(run: Run) -> None:
    """Log the model, the data, the recipe and the length of the run."""
    cfg, world, data = run.cfg, run.runtime.world, run.data
    parameters = sum(p.numel() for p in run.step.model.parameters())
    where = device_name(run.runtime.device)
    warmup = f"{cfg.schedule.warmup_epochs:g} epochs of warm-up" if cfg.schedule.warmup_epochs else "no warm-up"
    log.info("%s: %s, %.2f M parameters, on %d × %s", cfg.name, cfg.model.name, parameters / 1e6, world.size, where)
    log.info(
        "data: %s, %d training and %d validation images, %d classes, read by %s from %s",
        *(cfg.data.name, len(data.plan.rows), len(data.val_set), len(data.names), cfg.data.backend),
        data.train_set.source.layout,
    )
    log.info("recipe: %s", described(cfg))
    log.info(
        "run: %d epochs of %d steps, batch %d = %d processes × %d micro-batches, %s, peak lr %.3g, %s, %s",
        *(cfg.epochs, run.length.steps_per_epoch, cfg.batch_size, world.size, data.geometry.micro_steps),
        *(cfg.optim.name, peak_lr(cfg.optim, cfg.batch_size), warmup, cfg.amp),
    )
    if run.runtime.device.type == "cpu" and cfg.amp != "fp32":
        log.info("most CPUs compute much faster in fp32: add amp=fp32, unless you train here in %s on purpose", cfg.amp)


def conclude(directory: RunDirectory, scores: Scores | None, best: dict[str, Any] | None) -> None:
    """Log the scores, where the files of the run are, and the command to evaluate it.

    Args:
        directory: directory of the run.
        scores: scores of the last validation; None if the run had already ended: the last ones in the metrics are used.
        best: step and top-1 of the best validation; None if every validation had logits that are not finite.
    """
    lines = [line for line in directory.read_metrics() if line["split"] == "val"]
    if scores is None and not lines:
        return
    last = scores.as_dict() if scores is not None else lines[-1]
    checkpoint = os.path.relpath(directory.checkpoints / "last.pt")
    log.info("")
    log.info("top-1 %.2f %%, top-5 %.2f %% on %d images", last["top1"], last["top5"], last["images"])
    if best is not None:
        log.info("best  %.2f %% at step %d", best["top1"], best["step"])
    log.info("run         %s", os.path.relpath(directory.path))
    log.info("curves      %s", os.path.relpath(directory.plots / "curves.png"))
    log.info("first batch %s", os.path.relpath(directory.plots / "batch.png"))
    log.info("evaluate    python eval.py %s", shlex.quote(f"checkpoint={checkpoint}"))
