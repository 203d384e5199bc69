"""Keeps the last steps in mind and, when the loss jumps or is not finite, writes down what led there."""

import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor

from data import TrainPlan
from engine.beside import beside
from engine.checkpoint import Checkpoints
from engine.distributed import World
from engine.json_text import spelt, to_json
from engine.run_dir import RunDirectory

log = logging.getLogger(__name__)

# A loss is a spike where it exceeds the median of the last steps by this many of their (robust) standard deviations,
# and by this share of the median.
DEVIATIONS, SHARE = 8.0, 0.25
LEAST_HISTORY = 16  # steps, without which nothing is called a spike
MOST_SPIKES = 5  # that a run records; each record keeps a checkpoint


class FlightRecorder:
    """Watches the loss of every step without waiting for the device.

    Args:
        world: this process among all.
        plan: knows the images of each step.
        name: what an image is called, by its row of the index.
        checkpoints: of which the last before a spike is set aside for a replay.
        run: the directory whose ``crashes/`` takes the records.
        about: what else a replay needs to know.
        keep: steps in a record; 0: no records.
    """

    def __init__(
        self,
        world: World,
        plan: TrainPlan,
        name: Callable[[int], str],
        checkpoints: Checkpoints,
        run: RunDirectory,
        about: dict[str, Any],
        keep: int,
    ):
        self.world, self.plan, self.checkpoints, self.run = world, plan, checkpoints, run
        self.name, self.about, self.keep = name, about, keep
        self.past: deque[dict[str, float]] = deque(maxlen=max(keep, LEAST_HISTORY))
        self.unread: list[tuple[int, float, Tensor]] = []
        self.quiet_until = 0

    def add(self, step: int, loss: Tensor, grad_norm: Tensor, lr: float) -> None:
        """Remember a step, counted from 1."""
        if self.keep:
            self.unread.append((step, lr, torch.stack([loss, grad_norm]).detach()))

    def look(self, bad_step: int | None) -> str | None:
        """Read the losses since the last look; every process must call it at the same step.

        Args:
            bad_step: one that is known to be not finite.

        Returns:
            A line about the record that was written, on the first process.
        """
        if not self.unread:
            return None
        rows = self.world.gather(torch.cat([pair for *_, pair in self.unread]))
        parts = torch.tensor(rows, dtype=torch.float64).view(len(rows), -1, 2)
        losses, norms = parts[:, :, 0].sum(dim=0).tolist(), parts[0, :, 1].tolist()
        said = None
        for (step, lr, _), loss, norm in zip(self.unread, losses, norms, strict=True):
            history = [line["loss"] for line in self.past]
            jumped = step > self.quiet_until and is_spike(history, loss)
            self.past.append({"step": step, "loss": loss, "grad_norm": norm, "lr": lr})
            if step == bad_step or (jumped and (bad_step is None or step < bad_step)):
                kind = "not finite" if step == bad_step else "spike"
                with beside(f"the record of step {step} cannot be written"):
                    said = self._record(kind, step, loss, history) or said
                self.quiet_until = step + self.keep
        self.unread = []
        return said

    def _record(self, kind: str, step: int, loss: float, history: list[float]) -> str | None:
        if not self.world.is_main:
            return None
        if kind == "spike" and len(list(self.run.crashes.glob("step_*/record.json"))) >= MOST_SPIKES:
            return None
        place = self.run.crashes / f"step_{step:08d}"
        place.mkdir(parents=True, exist_ok=True)
        start = self.checkpoints.set_aside(step, place / "checkpoint.pt")
        rows = self.plan.images_of(step - 1)
        record = {
            "step": step,
            "kind": kind,
            "checkpoint_step": start,
            **spelt(self.about),
            "steps": list(self.past),
            "readings": [reading for reading in self.run.read_stability() if reading["step"] >= self.past[0]["step"]],
            "images": [{"index": int(row), "path": self.name(int(row))} for row in rows],
        }
        (place / "record.json").write_text(to_json(record, indent=1) + "\n", encoding="utf-8")
        usual = f"usually {median(history):.4g}" if history else "the first steps"
        return (
            f"step {step}: the loss is {loss:.4g} ({usual}); its images and the steps before are in "
            f"{place / 'record.json'}; python scripts/replay_crash.py {self.run.path} runs to it again with "
            "every instrument on"
        )


def is_spike(history: Sequence[float], loss: float) -> bool:
    """Whether a loss stands out from those of the steps before it."""
    if not math.isfinite(loss):
        return True
    if len(history) < LEAST_HISTORY:
        return False
    middle = median(history)
    spread = 1.4826 * median(abs(value - middle) for value in history)  # a normal distribution's standard deviation
    return loss > middle + max(DEVIATIONS * spread, SHARE * abs(middle))
