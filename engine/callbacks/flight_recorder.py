"""Remember the last steps. When the loss jumps or is not finite, write a record of the steps before."""

import logging
import math
from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor

from engine.callbacks.callback import Callback
from engine.json_text import to_json, with_text_for_nonfinite
from engine.run import Run
from engine.settings import as_container
from engine.step import StepOutcome
from engine.warn_on_failure import warn_on_failure
from models import family_of

log = logging.getLogger(__name__)

# A loss is a spike if it exceeds the median of the last steps by more than DEVIATIONS robust standard deviations and by
# more than SHARE of the median.
DEVIATIONS, SHARE = 8.0, 0.25
LEAST_HISTORY = 16  # steps needed before a finite loss can be a spike
MOST_SPIKES = 5  # largest number of recorded spikes, because each record keeps a checkpoint


class FlightRecorder(Callback):
    """Watches the loss of every step without waiting for the device.

    Args:
        run: the parts of the run. ``monitor.history`` is the number of steps in a record; 0: no records.
    """

    exchanges = True

    def __init__(self, run: Run):
        self.run, self.world, self.plan = run, run.runtime.world, run.data.plan
        self.keep = keep = run.cfg.monitor.history
        self.crashes = run.directory.crashes
        self.past: deque[dict[str, float]] = deque(maxlen=max(keep, LEAST_HISTORY))
        self.unread: list[tuple[int, float, Tensor]] = []
        self.quiet_until = 0

    def after_step(self, outcome: StepOutcome) -> None:
        """Keep the step's loss, gradient norm and learning rate, without reading them from the device."""
        if self.keep:
            numbers = torch.stack([outcome.loss, outcome.grad_norm]).detach()
            self.unread.append((outcome.step, outcome.lr, numbers))

    def on_line(self, line: dict[str, Any]) -> None:
        """Read the losses since the last reading. A ``crash`` line tells the first step that was not finite."""
        if line["split"] in ("train", "crash") and self.unread:
            self._look(line["step"] if line["split"] == "crash" else None)

    def _look(self, bad_step: int | None) -> None:
        rows = self.world.gather(torch.cat([numbers for *_, numbers in self.unread]))
        parts = torch.tensor(rows, dtype=torch.float64).view(len(rows), -1, 2)
        losses, norms = parts[:, :, 0].sum(dim=0).tolist(), parts[0, :, 1].tolist()
        for (step, lr, _), loss, norm in zip(self.unread, losses, norms, strict=True):
            history = [line["loss"] for line in self.past]
            jumped = step > self.quiet_until and is_spike(history, loss)
            self.past.append({"step": step, "loss": loss, "grad_norm": norm, "lr": lr})
            if step == bad_step or (jumped and (bad_step is None or step < bad_step)):
                kind = "not finite" if step == bad_step else "spike"
                with warn_on_failure(f"the record of step {step} cannot be written"):
                    self._record(kind, step, loss, history)
                self.quiet_until = step + self.keep
        self.unread = []

    def _record(self, kind: str, step: int, loss: float, history: list[float]) -> None:
        if not self.world.is_main:
            return
        if kind == "spike" and len(list(self.crashes.glob("step_*/record.json"))) >= MOST_SPIKES:
            return
        place = self.crashes / f"step_{step:08d}"
        place.mkdir(parents=True, exist_ok=True)
        start = self.run.checkpoints.set_aside(step, place / "checkpoint.pt")
        rows, source = self.plan.images_of(step - 1), self.run.data.train_set.source
        record = {
            "step": step,
            "kind": kind,
            "checkpoint_step": start,
            **with_text_for_nonfinite(self._about()),
            "steps": list(self.past),
            "readings": [line for line in self.run.directory.read_stability() if line["step"] >= self.past[0]["step"]],
            "images": [{"index": int(row), "path": source.name(int(row))} for row in rows],
        }
        (place / "record.json").write_text(to_json(record, indent=1) + "\n", encoding="utf-8")
        usual = f"usually {median(history):.4g}" if history else "the first steps"
        log.warning(
            "step %d: the loss is %.4g (%s); its images and the steps before are in %s; "
            "python scripts/replay_crash.py %s repeats the run up to this step with every instrument on",
            *(step, loss, usual, place / "record.json", self.run.directory.path),
        )

    def _about(self) -> dict[str, Any]:
        """Return what else a replay needs: model family, number of processes and config."""
        cfg = self.run.cfg
        return {"family": family_of(cfg.model), "processes": self.world.size, "config": as_container(cfg)}


def is_spike(history: Sequence[float], loss: float) -> bool:
    """Whether a loss is far above those of the steps before it, or is not finite."""
    if not math.isfinite(loss):
        return True
    if len(history) < LEAST_HISTORY:
        return False
    middle = median(history)
    spread = 1.4826 * median(abs(value - middle) for value in history)  # 1.4826 · MAD estimates σ of normal data
    return loss > middle + max(DEVIATIONS * spread, SHARE * abs(middle))
