"""What a run says of itself: what is about to happen, and what came out."""

import logging
import os
import shlex

from engine.device import device_name
from engine.recipe import described
from engine.scoring import Scores
from engine.trainer import Trainer
from optim import peak_lr

log = logging.getLogger(__name__)


def describe(trainer: Trainer, val_images: int) -> None:
    """Say what is about to happen.

    Args:
        trainer: ready to start.
        val_images: images of the validation split.
    """
    cfg, world, stepper = trainer.cfg, trainer.world, trainer.stepper
    parameters = sum(p.numel() for p in stepper.model.parameters())
    where = device_name(stepper.device)
    warmup = f"{cfg.schedule.warmup_epochs:g} epochs of warm-up" if cfg.schedule.warmup_epochs else "no warm-up"
    log.info("%s: %s, %.2f M parameters, on %d × %s", cfg.name, cfg.model.name, parameters / 1e6, world.size, where)
    log.info(
        "data: %s, %d training and %d validation images, %d classes, read by %s",
        *(cfg.data.name, len(trainer.plan.rows), val_images, len(trainer.names), cfg.data.backend),
    )
    log.info("recipe: %s", described(cfg))
    log.info(
        "run: %d epochs of %d steps, batch %d = %d processes × %d micro-batches, peak lr %.3g, %s, %s",
        *(cfg.epochs, trainer.per_epoch, cfg.batch_size, world.size, trainer.plan.geometry.micro_steps),
        *(peak_lr(cfg.optim, cfg.batch_size), warmup, cfg.amp),
    )


def conclude(trainer: Trainer, scores: Scores | None) -> None:
    """Say what came out and how to go on.

    Args:
        trainer: at its end.
        scores: of the last validation; None where the run had ended before: those in its metrics.
    """
    run = trainer.run
    lines = [line for line in run.read_metrics() if line["split"] == "val"]
    if scores is None and not lines:
        return
    last = scores.as_dict() if scores is not None else lines[-1]
    checkpoint = os.path.relpath(run.checkpoints / "last.pt")
    log.info("")
    log.info("top-1 %.2f %%, top-5 %.2f %% on %d images", last["top1"], last["top5"], last["images"])
    if trainer.best is not None:  # else no validation gave finite answers
        log.info("best  %.2f %% at step %d", trainer.best["top1"], trainer.best["step"])
    log.info("run         %s", os.path.relpath(run.path))
    log.info("curves      %s", os.path.relpath(run.plots / "curves.png"))
    log.info("first batch %s", os.path.relpath(run.plots / "batch.png"))
    log.info("evaluate    python eval.py %s", shlex.quote(f"checkpoint={checkpoint}"))
