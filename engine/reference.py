"""A reference is the curve that finished runs of a recipe have followed. It shows whether another run is on track.

``conf/experiment/NAME.json`` is a reference for ``conf/experiment/NAME.yaml``; in ``conf/recipe/`` likewise.
``python scripts/compare_runs.py RUN … --write-reference FILE`` writes such a file.
"""

import json
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from engine.errors import UserError, reason
from engine.json_text import with_text_for_nonfinite
from engine.options.config import TrainConfig
from engine.options.plain import defaults_of, differences, flatten
from engine.options.recipe import recipe_options
from engine.options.renamed import translated
from optim import OptimConfig, ScheduleConfig

FEW_RUNS = 2  # a reference of so many runs, or of one, says too little about the spread
TOLERANCE_OF_FEW = 2.0  # points of top-1, for such a reference
LEAST_TOLERANCE = 1.0  # points of top-1: a few seeds may be close to each other by chance
MAY_DIFFER = ("seed", "data.backend")  # both backends deliver the same pixels
# The options of all models have these defaults. Those of a family are known only where its config class is.
DEFAULTS = defaults_of(TrainConfig(optim=OptimConfig(), schedule=ScheduleConfig()))


@dataclass(frozen=True)
class Curve:
    """Top-1 in percent and training loss at the validations after whole epochs, by epoch.

    The loss is the mean over the epoch's steps, so it does not depend on ``log_every``. None stands for a number that
    is not finite.
    """

    top1: dict[int, float | None]
    loss: dict[int, float | None]

    @classmethod
    def of(cls, metrics: list[dict[str, Any]]) -> "Curve":
        """Compute the curve from the lines of a run's ``metrics.jsonl``."""
        total: dict[int, float] = defaultdict(float)
        steps: dict[int, int] = defaultdict(int)
        before = 0
        for line in (line for line in metrics if line["split"] == "train"):
            epoch, new = math.ceil(line["epoch"]), line["step"] - before  # the line's loss is the mean over new steps
            total[epoch] += new * (math.nan if line["loss"] is None else line["loss"])
            steps[epoch] += new
            before = line["step"]
        validations = [line for line in metrics if line["split"] == "val" and line["epoch"] % 1 == 0]
        top1 = {int(line["epoch"]): line["top1"] for line in validations}
        means = {epoch: total[epoch] / steps[epoch] for epoch in top1 if steps[epoch]}
        return cls(top1, {epoch: _finite(means.get(epoch)) for epoch in top1})


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def setting_of(config: dict[str, Any], steps_per_epoch: int, images: int) -> dict[str, Any]:
    """Return all that two runs must share so that their curves can be compared.

    These are the options of the recipe except the seed and the backend, the epochs, and the numbers of images.

    Args:
        config: all options of a run, with groups as dictionaries.
        steps_per_epoch: optimizer steps in an epoch.
        images: validation images.
    """
    # Options that were added after the run was made had their defaults.
    options = DEFAULTS | flatten(translated(config))
    numbers = {"epochs": options["epochs"], "steps_per_epoch": steps_per_epoch, "validation_images": images}
    return _shared(options) | numbers


def _shared(options: dict[str, Any]) -> dict[str, Any]:
    """Return those of the options that two runs must share, with values that JSON can hold."""
    shared = {key: value for key, value in sorted(recipe_options(options).items()) if key not in MAY_DIFFER}
    return with_text_for_nonfinite(shared)


@dataclass(frozen=True)
class Reference:
    """The curves of finished runs that differ in their seeds only.

    Attributes:
        path: its file.
        setting: see :func:`setting_of`.
        curves: one for each run, all with the same epochs.
    """

    path: Path
    setting: dict[str, Any]
    curves: list[Curve]

    @classmethod
    def read(cls, path: Path) -> "Reference":
        """Read a reference file.

        Raises:
            UserError: if there is no such file, or it is not a reference.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            curves = [Curve(_by_epoch(run["top1"]), _by_epoch(run["loss"])) for run in content["runs"]]
            reference = cls(path, dict(content["setting"]), curves)
            epochs = {tuple(values) for curve in curves for values in (curve.top1, curve.loss)}
            is_whole = len(epochs) == 1 and reference.epochs in curves[0].top1
            if not is_whole or any(None in curve.top1.values() for curve in curves):
                raise ValueError("an epoch or an accuracy is missing")
            return reference
        except FileNotFoundError:
            raise UserError(
                f"there is no reference {path}: a recipe has one only if it was trained to its end; --write-reference "
                "makes one from such a run"
            ) from None
        except OSError as error:
            raise UserError(f"{path} cannot be read ({reason(error)}): name a reference file") from error
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            raise UserError(
                f"{path} is not a reference, or damaged: restore it, or write it again with --write-reference"
            ) from None

    @property
    def epochs(self) -> int:
        """Epochs of a whole run."""
        return int(self.setting["epochs"])

    def top1(self, epoch: int) -> float:
        """Return the mean top-1 after an epoch, in percent."""
        return fmean(self._all_top1(epoch))

    def loss(self, epoch: int) -> float | None:
        """Return the mean training loss of an epoch; None if a run's is not finite."""
        losses = [curve.loss[epoch] for curve in self.curves]
        return _finite(fmean(math.nan if loss is None else loss for loss in losses))

    def tolerance(self, epoch: int) -> float:
        """Return by how many points of top-1 a run may differ from the mean and is still on track.

        This is the difference between the best and the worst run of the reference, but at least 1 point, and at least 2
        if the reference has only one run or two.
        """
        low, high = self.range(epoch)
        least = TOLERANCE_OF_FEW if len(self.curves) <= FEW_RUNS else LEAST_TOLERANCE
        return max(high - low, least)

    def range(self, epoch: int) -> tuple[float, float]:
        """Return the lowest and the highest top-1 of the runs after an epoch, in percent."""
        found = self._all_top1(epoch)
        return min(found), max(found)

    def _spread(self, epoch: int) -> str:
        """Return what is known of the spread after an epoch, in words."""
        if len(self.curves) == 1:
            return "one run"
        low, high = self.range(epoch)
        return f"{low:.2f} to {high:.2f} % in {len(self.curves)} runs"

    def _all_top1(self, epoch: int) -> list[float]:
        return [curve.top1[epoch] or 0.0 for curve in self.curves]

    def shared_epochs(self, curve: Curve) -> list[int]:
        """Return the epochs after which both the run and the reference were validated, in order."""
        return sorted(epoch for epoch in self.curves[0].top1 if curve.top1.get(epoch) is not None)

    def verdict(self, curve: Curve) -> str:
        """Return one line that says where a run stands at its last epoch that the reference has, too.

        Raises:
            UserError: if there is no such epoch.
        """
        epochs = self.shared_epochs(curve)
        if not epochs:
            known = ", ".join(map(str, self.curves[0].top1))
            raise UserError(f"the run has no validation yet after one of the epochs of {self.path}: {known}")
        epoch = epochs[-1]
        ahead = {e: (curve.top1[e] or 0.0) - self.top1(e) for e in epochs}
        tolerance = self.tolerance(epoch)
        numbers = (
            f"after epoch {epoch} of {self.epochs} top-1 is {curve.top1[epoch]:.2f} %, the reference had "
            f"{self.top1(epoch):.2f} %, {self._spread(epoch)}; up to {tolerance:.1f} points apart is on track"
        )
        if abs(ahead[epoch]) <= tolerance:
            return f"on track: {numbers}"
        if ahead[epoch] > 0:
            return f"ahead by {ahead[epoch]:.1f} points: {numbers}"
        return f"behind by {-ahead[epoch]:.1f} points{_falling_back(ahead)}: {numbers}"


def _falling_back(ahead: dict[int, float]) -> str:
    """Return since when the run loses against the reference at every validation; empty for less than two in a row."""
    epochs = list(ahead)
    since = len(epochs) - 1
    while since > 0 and ahead[epochs[since - 1]] > ahead[epochs[since]]:
        since -= 1
    return f", and falling back since epoch {epochs[since]}" if len(epochs) - since > 2 else ""


def _by_epoch(values: dict[str, float | None]) -> dict[int, float | None]:
    return {int(epoch): value if value is None else float(value) for epoch, value in values.items()}


def unlike(reference: Reference, setting: dict[str, Any], defaults: dict[str, Any] = DEFAULTS) -> list[str]:
    """Return how a run's setting differs from that of a reference, as :func:`differences`.

    Args:
        reference: the reference. Options that were added after it was made had their defaults.
        setting: the run's setting.
        defaults: defaults by dotted name.
    """
    return differences(_shared(defaults) | reference.setting, setting)
