"""Remember the last steps. When the loss jumps or is not finite, write a record of the steps before."""

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from statistics import median

from engine.callbacks.callback import Callback
from engine.json_text import to_json, with_text_for_nonfinite
from engine.measuring.meter import Reading
from engine.options.plain import as_container
from engine.run import Run
from engine.warn_on_failure import warn_on_failure
from models import family_of

log = logging.getLogger(__name__)

# A loss is a spike if it exceeds the median of the last steps by more than DEVIATIONS robust standard deviations and by
# more than SHARE of the median.
DEVIATIONS, SHARE = 8.0, 0.25
LEAST_HISTORY = 16  # steps needed before a finite loss can be a spike
MOST_SPIKES = 5  # largest number of recorded spikes, because each record keeps a checkpoint


class FlightRecorder(Callback):
    """Watches the loss of every step.

    Args:
        run: the parts of the run. ``monitor.history`` is the number of steps in a record, 16 at least; 0: no
            records.
    """

    def __init__(self, run: Run):
        self.run, self.plan = run, run.data.plan
        self.keep = run.cfg.monitor.history
        self.crashes = run.directory.crashes
        self.past: deque[dict[str, float]] = deque(maxlen=max(self.keep, LEAST_HISTORY))
        self.quiet_until = 0

    def on_reading(self, reading: Reading) -> None:
        """Look at the loss of each step, up to the first one that was not finite."""
        if not self.keep:
            return
        for numbers in reading.steps:
            step, loss, is_bad = numbers.step, numbers.loss, numbers.step == reading.bad_step
            history = [line["loss"] for line in self.past]
            self.past.append(asdict(numbers))
            if is_bad or (step > self.quiet_until and is_spike(history, loss)):
                with warn_on_failure(f"the record of step {step} cannot be written"):
                    self._record("not finite" if is_bad else "spike", step, loss, history)
                self.quiet_until = step + self.keep
            if is_bad:
                return

    def _record(self, kind: str, step: int, loss: float, history: list[float]) -> None:
        if kind == "spike" and len(list(self.crashes.glob("step_*/record.json"))) >= MOST_SPIKES:
            return
        place = self.crashes / f"step_{step:08d}"
        place.mkdir(parents=True, exist_ok=True)
        start = self.run.checkpoints.set_aside(step, place / "checkpoint.pt")
        rows, source = self.plan.images_of(step - 1), self.run.data.train_set.source
        cfg = self.run.cfg
        record = {
            "step": step,
            "kind": kind,
            "checkpoint_step": start,
            "family": family_of(cfg.model),
            "processes": self.run.runtime.world.size,
            "config": with_text_for_nonfinite(as_container(cfg)),
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


def is_spike(history: Sequence[float], loss: float) -> bool:
    """Whether a loss is far above those of the steps before it."""
    if len(history) < LEAST_HISTORY:
        return False
    middle = median(history)
    spread = 1.4826 * median(abs(value - middle) for value in history)  # 1.4826 · MAD estimates σ of normal data
    return loss > middle + max(DEVIATIONS * spread, SHARE * abs(middle))
