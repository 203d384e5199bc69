"""Collect the numbers of the steps between two lines of metrics. They stay on the device until they are read."""

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.runtime import Runtime
from engine.step import StepOutcome


@dataclass(frozen=True)
class StepNumbers:
    """The numbers of one step.

    Attributes:
        step: number of the step, counted from 1.
        loss: mean loss over the global batch.
        grad_norm: norm of the gradient before clipping.
        lr: learning rate.
    """

    step: int
    loss: float
    grad_norm: float
    lr: float


@dataclass(frozen=True)
class Reading:
    """The steps since the last reading.

    Attributes:
        steps: the numbers of each step.
        loss: mean training loss.
        grad_norm: mean norm of the gradient before clipping. In fp16, one that is not finite counts as 0.
        images_per_second: sum over all processes.
        seconds_per_step: time of the first process, so that all processes use the same number.
        data_wait: share of the time in which the device had no data, on the process that waited longest.
        bad_step: the first step whose loss or gradient was not finite, counted from 1; None if all were finite.
        votes: for each yes-no question, whether any process answered yes.
    """

    steps: list[StepNumbers]
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
    """Keeps losses and gradient norms without waiting for the device.

    Args:
        runtime: processes, device and precision.
        batch_size: images in an optimizer step, over all processes.
    """

    def __init__(self, runtime: Runtime, batch_size: int):
        self.world, self.device, self.batch_size = runtime.world, runtime.device, batch_size
        # In fp16 an overflowing gradient is normal: the gradient scaler skips the step and lowers its scale.
        self.judge_gradient = runtime.amp != "fp16"
        self.bad_step: int | None = None
        self.restart()

    def restart(self) -> None:
        """Start a new interval, for example after a validation or a checkpoint."""
        self.unread: list[tuple[int, float, Tensor]] = []
        self.waited = 0.0
        self.started = time.perf_counter()

    def add(self, outcome: StepOutcome, waited: float) -> None:
        """Add one step, which waited ``waited`` seconds for data."""
        self.unread.append((outcome.step, outcome.lr, torch.stack([outcome.loss, outcome.grad_norm]).detach()))
        self.waited += waited

    def is_sound(self) -> bool:
        """Whether every loss and gradient of this process was finite so far. This waits for the device."""
        return self.bad_step is None and all(self._is_finite(*pair.tolist()) for *_, pair in self.unread)

    def _is_finite(self, loss: float, grad_norm: float) -> bool:
        return math.isfinite(loss) and (math.isfinite(grad_norm) or not self.judge_gradient)

    def read(self, votes: list[bool]) -> Reading:
        """Return the steps since the last reading, and start a new interval. This waits for the device.

        Args:
            votes: this process's answers to yes-no questions. All processes must ask the same questions.
        """
        return self._reading(self.world.all_gather(self._row(votes)))

    def read_alone(self, share: float) -> Reading:
        """Return the steps since the last reading as this process sees them, without contacting the others.

        Args:
            share: this process's share of the images of a batch. The losses are the means over these images.
        """
        return self._reading(self._row([]).cpu().unsqueeze(0), share)

    def _row(self, votes: list[bool]) -> Tensor:
        """The numbers of this process: times, votes, then loss and gradient norm of each step."""
        elapsed = time.perf_counter() - self.started
        host = torch.tensor([self.waited, elapsed, *map(float, votes)], dtype=torch.float64, device=self.device)
        return torch.cat([host, *(pair for *_, pair in self.unread)])  # all become float64

    def _reading(self, rows: Tensor, share: float = 1.0) -> Reading:
        """The reading of the rows of some processes, on the host. Together they have a ``share`` of each batch."""
        elapsed, count = time.perf_counter() - self.started, len(self.unread)
        host, pairs = rows[:, : -2 * count], rows[:, -2 * count :].unflatten(1, (count, 2))
        steps = [
            StepNumbers(step, sum(losses) / share, norms[0], lr)
            for (step, lr, _), (losses, norms) in zip(self.unread, pairs.permute(1, 2, 0).tolist(), strict=True)
        ]
        self.bad_step = next((s.step for s in steps if not self._is_finite(s.loss, s.grad_norm)), None)
        norms = [s.grad_norm if self.judge_gradient or math.isfinite(s.grad_norm) else 0.0 for s in steps]
        reading = Reading(
            steps=steps,
            loss=sum(s.loss for s in steps) / count,
            grad_norm=sum(norms) / count,
            images_per_second=count * self.batch_size / elapsed,
            seconds_per_step=float(host[0, 1]) / count,
            data_wait=float(host[:, 0].max()) / elapsed,
            bad_step=self.bad_step,
            votes=host[:, 2:].any(dim=0).tolist(),
        )
        self.restart()
        return reading
