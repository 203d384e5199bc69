"""How smooth a model is during a training: its local Lipschitz constant and its bound. For watched trainings."""

import math
from typing import Any

import torch

from engine.callbacks import Callback
from engine.json_text import to_json
from engine.line_file import LineFile
from engine.run import Run
from engine.step import StepOutcome
from models import lipschitz_bound
from stability import local_lipschitz

EVERY = 24  # steps between two readings: one runs the model backwards up to 200 times
IMAGES = 8
FILE = "smoothness.jsonl"


class Smoothness(Callback):
    """Writes a line every 24 steps, for the first images of the first training batch. Each makes the training wait.

    ``local_lipschitz`` is the largest singular value of the Jacobian, as the median over the images. ``log10_bound`` is
    the logarithm of a bound that holds for every image; it is left out if there is no finite one.

    Args:
        run: the parts of the run.
        state: of an earlier start; not used.
    """

    def __init__(self, run: Run, state: dict[str, Any] | None):
        self.model = run.step.model
        self.lines = LineFile(run.directory.path / FILE)
        self.images: torch.Tensor | None = None

    def after_step(self, outcome: StepOutcome) -> None:
        """Measure at the first step and at every 24th."""
        if self.images is None:
            self.images = outcome.first_batch.images[:IMAGES].float()
        if outcome.step % EVERY and outcome.step > 1:
            return
        found = {"step": outcome.step, "local_lipschitz": local_lipschitz(self.model, self.images).median().item()}
        bound = lipschitz_bound(self.model, (1, *self.images.shape[1:])).log10_tight
        self.lines.add(to_json(found | ({"log10_bound": bound} if math.isfinite(bound) else {})))
