"""What happened since the last line of metrics, gathered on the device and read there once."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.distributed import World

NEVER = float("inf")


@dataclass(frozen=True)
class Reading:
    """Means over all processes and all steps since the last reading.

    Attributes:
        loss: mean training loss.
        grad_norm: mean norm of the gradient before clipping.
        images_per_second: over all processes.
        seconds_per_step: on the first process, so that all agree on it.
        data_wait: share of the time spent waiting for data, on the slowest process.
        bad_step: the first step whose loss or gradient was not finite, counted from 1, or None.
        votes: for each question put to the processes, whether any said yes.
    """

    loss: float
    grad_norm: float
    images_per_second: float
    seconds_per_step: float
    data_wait: float
    bad_step: int | None
    votes: list[bool]


class Meter:
    """Adds up losses without waiting for the device.

    Args:
        world: this process among all.
        device: where losses lie.
        judge_gradient: whether a gradient that is not finite is a failure; with a gradient scaler it is not.
    """

    def __init__(self, world: World, device: torch.device, judge_gradient: bool):
        self.world = world
        self.device = device
        self.judge_gradient = judge_gradient
        self.totals = torch.zeros(2, dtype=torch.float64, device=device)
        self.bad_step = torch.full((), NEVER, dtype=torch.float64, device=device)
        self.restart()

    def restart(self) -> None:
        """Start a new span of time, after an evaluation or a checkpoint."""
        self.totals.zero_()
        self.steps = 0
        self.images = 0
        self.waited = 0.0
        self.started = time.perf_counter()

    def add(self, step: int, loss: Tensor, grad_norm: Tensor, images: int, waited: float) -> None:
        """Count one step (numbered from 1) of ``images`` images on all processes, ``waited`` seconds for data."""
        # A gradient scaler probes for its scale with steps whose gradient overflows, and skips them.
        norm = grad_norm if self.judge_gradient else torch.nan_to_num(grad_norm, nan=0.0, posinf=0.0)
        self.totals += torch.stack([loss, norm]).double()
        finite = torch.isfinite(loss) & torch.isfinite(grad_norm) if self.judge_gradient else torch.isfinite(loss)
        self.bad_step = torch.minimum(self.bad_step, torch.where(finite, NEVER, float(step)))
        self.steps += 1
        self.images += images
        self.waited += waited

    def is_sound(self) -> bool:
        """Whether every loss and gradient of this process was finite so far; waits for the device."""
        return float(self.bad_step) == NEVER

    def read(self, votes: list[bool]) -> Reading:
        """The means so far over all processes, and a new span; the only place that waits for the device.

        Args:
            votes: this process's answers to questions on which all must agree.
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
            images_per_second=self.images / elapsed,
            seconds_per_step=rows[0][4] / steps,
            data_wait=max(row[3] for row in rows) / elapsed,
            bad_step=int(bad) if bad != NEVER else None,
            votes=[any(row[5 + i] for row in rows) for i in range(len(votes))],
        )
        self.restart()
        return reading
