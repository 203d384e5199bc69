"""Sum up losses and times between two lines of metrics. The sums stay on the device until they are read."""

import time
from dataclasses import dataclass
from typing import Any

import torch

from engine.runtime import Runtime
from engine.step import StepOutcome

NEVER = float("inf")


@dataclass(frozen=True)
class Reading:
    """Means over all processes and all steps since the last reading.

    Attributes:
        loss: mean training loss.
        grad_norm: mean norm of the gradient before clipping.
        images_per_second: sum over all processes.
        seconds_per_step: time of the first process, so that all processes use the same number.
        data_wait: share of the time in which the device had no data, on the process that waited longest.
        bad_step: the first step whose loss or gradient was not finite, counted from 1; None if all were finite.
        votes: for each yes-no question, whether any process answered yes.
    """

    loss: float
    grad_norm: float
    images_per_second: float
    seconds_per_step: float
    data_wait: float
    bad_step: int | None
    votes: list[bool]

    def numbers(self) -> dict[str, Any]:
        """Return the numbers for the line of metrics."""
        names = ("loss", "grad_norm", "images_per_second", "data_wait")
        return {name: getattr(self, name) for name in names}


class Meter:
    """Adds up losses and gradient norms without waiting for the device.

    Args:
        runtime: processes, device and precision.
        batch_size: images in an optimizer step, over all processes.
    """

    def __init__(self, runtime: Runtime, batch_size: int):
        self.world, self.device, self.batch_size = runtime.world, runtime.device, batch_size
        device = runtime.device
        # In fp16 an overflowing gradient is normal: the gradient scaler skips the step and lowers its scale.
        self.judge_gradient = runtime.amp != "fp16"
        self.totals = torch.zeros(2, dtype=torch.float64, device=device)
        self.bad_step = torch.full((), NEVER, dtype=torch.float64, device=device)
        self.restart()

    def restart(self) -> None:
        """Start a new interval, for example after a validation or a checkpoint."""
        self.totals.zero_()
        self.steps = 0
        self.waited = 0.0
        self.started = time.perf_counter()

    def add(self, outcome: StepOutcome, waited: float) -> None:
        """Add one step, which waited ``waited`` seconds for data."""
        loss, grad_norm = outcome.loss, outcome.grad_norm
        norm = grad_norm if self.judge_gradient else torch.nan_to_num(grad_norm, nan=0.0, posinf=0.0)
        self.totals += torch.stack([loss, norm]).double()
        finite = torch.isfinite(loss) & torch.isfinite(grad_norm) if self.judge_gradient else torch.isfinite(loss)
        self.bad_step = torch.minimum(self.bad_step, torch.where(finite, NEVER, float(outcome.step)))
        self.steps += 1
        self.waited += waited

    def is_sound(self) -> bool:
        """Whether every loss and gradient of this process was finite so far. This waits for the device."""
        return float(self.bad_step) == NEVER

    def read(self, votes: list[bool]) -> Reading:
        """Return the means over all processes, and start a new interval. This waits for the device.

        Args:
            votes: this process's answers to yes-no questions. All processes must ask the same questions.
        """
        elapsed = time.perf_counter() - self.started
        host = torch.tensor([self.waited, elapsed, *map(float, votes)], dtype=torch.float64, device=self.device)
        rows = self.world.gather(torch.cat([self.totals, self.bad_step.view(1), host]))
        elapsed = time.perf_counter() - self.started
        steps = max(self.steps, 1)
        bad = min(row[2] for row in rows)
        reading = Reading(
            loss=sum(row[0] for row in rows) / steps,
            grad_norm=rows[0][1] / steps,
            images_per_second=self.steps * self.batch_size / elapsed,
            seconds_per_step=rows[0][4] / steps,
            data_wait=max(row[3] for row in rows) / elapsed,
            bad_step=int(bad) if bad != NEVER else None,
            votes=[any(row[5 + i] for row in rows) for i in range(len(votes))],
        )
        self.restart()
        return reading
