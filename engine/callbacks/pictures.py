"""The pictures of a run: its first batch as the model sees it, and its curves."""

from typing import Any

import torch

from engine.beside import beside
from engine.callbacks.callback import Callback, Callbacks
from engine.callbacks.plots import draw_batch, draw_curves
from engine.run_dir import RunDirectory
from engine.step import StepOutcome, TrainStep, seed_step


class Pictures(Callback):
    """Draws ``plots/batch.png`` once, and ``plots/curves.png`` after each validation.

    Args:
        directory: of the run.
        step: augments.
        names: name of each class.
        callbacks: are told of each picture.
    """

    def __init__(self, directory: RunDirectory, step: TrainStep, names: dict[int, str], callbacks: Callbacks):
        self.directory, self.step, self.names, self.callbacks = directory, step, names, callbacks
        self.has_looked = False

    def after_step(self, outcome: StepOutcome) -> None:
        """Draw the first batch, unless the run has a picture of one already."""
        if self.has_looked:
            return
        self.has_looked = True
        path = self.directory.plots / "batch.png"
        if path.exists():
            return
        batch, runtime, augment = outcome.first_batch, self.step.runtime, self.step.augment
        devices = [runtime.device] if runtime.device.type == "cuda" else []
        with beside(f"{path} cannot be drawn"), torch.random.fork_rng(devices):
            seed_step(self.step.cfg.seed, outcome.step - 1, runtime.world.rank)  # the same noise as in the step
            images, targets = augment(batch.images, batch.labels, batch.draws)
            draw_batch(augment.denormalise(images).cpu(), targets.cpu(), self.names, path)
            self.callbacks.on_picture("batch", path, 0)

    def on_line(self, line: dict[str, Any]) -> None:
        """Draw the curves after a validation."""
        if line["split"] == "val":
            path = self.directory.plots / "curves.png"
            with beside(f"{path} cannot be drawn"):
                draw_curves(self.directory.read_metrics(), path)
