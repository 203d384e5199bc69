"""Draw the pictures of a run: its first batches and its curves."""

from pathlib import Path
from typing import Any

import torch.nn.functional as F

from engine.callbacks.callback import Callback, Callbacks
from engine.callbacks.plots import draw_batch, draw_curves
from engine.run import Run
from engine.step import StepOutcome
from engine.warn_on_failure import warn_on_failure


class Pictures(Callback):
    """Draws the first training and validation batch once, and the curves after each validation.

    Args:
        run: the parts of the run.
        callbacks: get each picture of a batch.
    """

    def __init__(self, run: Run, callbacks: Callbacks):
        self.run, self.folder, self.callbacks = run, run.directory.plots, callbacks
        self.has_looked = False

    def after_step(self, outcome: StepOutcome) -> None:
        """Draw the first training batch, unless the run already has a picture of one."""
        if not self.has_looked:
            self.has_looked = True
            self._draw_training(outcome, self.folder / "batch.png")

    def _draw_training(self, outcome: StepOutcome, path: Path) -> None:
        if path.exists():
            return
        images, targets = outcome.first_batch
        with warn_on_failure(f"{path} cannot be drawn"):
            draw_batch(self.run.data.augment.denormalise(images).cpu(), targets.cpu(), self.run.data.names, path)
            self.callbacks.on_picture("batch", path, 0)

    def on_line(self, line: dict[str, Any]) -> None:
        """After a validation, draw the curves, and the first validation batch if there is no picture of it yet."""
        if line["split"] == "val":
            self._draw_validation(self.folder / "val_batch.png", line["step"])
            path = self.folder / "curves.png"
            with warn_on_failure(f"{path} cannot be drawn"):
                draw_curves(self.run.directory.read_metrics(), path)

    def _draw_validation(self, path: Path, step: int) -> None:
        batch = self.run.data.first_validation_batch
        if path.exists() or batch is None:
            return
        with warn_on_failure(f"{path} cannot be drawn"):
            targets = F.one_hot(batch.labels, self.run.data.num_classes).float()
            draw_batch(batch.images.cpu(), targets.cpu(), self.run.data.names, path)
            self.callbacks.on_picture("val_batch", path, step)
