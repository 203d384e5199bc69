"""Loaders: the plan carried out by a backend, as batches on the device."""

from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.backends import Backend
from data.crops import Crops
from data.geometry import shard
from data.plan import DeviceDraws, EvalPlan, TrainPlan


@dataclass(frozen=True)
class Batch:
    """One micro-batch on the device.

    Attributes:
        images: uint8 ``(n, 3, side, side)``.
        labels: int64 ``(n,)``; of an evaluation also ``(n, k)``, see :class:`data.EvalImages`.
        index: rows of the image index, on the host.
        draws: what the device augmentation does to it; ``None`` in evaluation.
    """

    images: Tensor
    labels: Tensor
    index: NDArray[np.int64]
    draws: DeviceDraws | None


class Loader:
    """Binds a backend to labels and a device.

    Args:
        backend: makes the images.
        labels: label of every row of the image index, int64; or its row of labels.
        device: where batches go.
    """

    def __init__(self, backend: Backend, labels: NDArray[np.int64], device: torch.device):
        self.backend = backend
        self.labels = labels
        self.device = device
        self.copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    def train(self, plan: TrainPlan, first_step: int, last_step: int) -> Generator[Batch, None, None]:
        """This process's micro-batches of the optimizer steps ``first_step … last_step - 1``, in order."""
        return self._batches(
            (plan.crops(epoch, positions), plan.device_draws(epoch, positions))
            for step in range(first_step, last_step)
            for epoch, positions in plan.positions(step)
        )

    def evaluate(self, plan: EvalPlan, batch_size: int, world_size: int, rank: int) -> Generator[Batch, None, None]:
        """This process's share of all images, in batches; over all processes every image comes once."""
        mine = shard(len(plan.index), world_size, rank)
        return self._batches(
            (plan.crops(range(start, min(start + batch_size, mine.stop))), None)
            for start in range(mine.start, mine.stop, batch_size)
        )

    def _batches(self, work: Iterator[tuple[Crops, DeviceDraws | None]]) -> Generator[Batch, None, None]:
        pending: deque[tuple[Crops, DeviceDraws | None]] = deque()

        def requests() -> Iterator[Crops]:
            for item in work:
                pending.append(item)
                yield item[0]

        with closing(self.backend.batches(requests())) as stream:
            for images in stream:
                crops, draws = pending.popleft()
                labels = torch.from_numpy(self.labels[crops.index])
                yield Batch(*self._to_device(images, labels), index=crops.index, draws=draws)

    def _to_device(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Copies to a GPU go beside the step that it still computes when the host asks for the next batch."""
        if self.copies is None:
            return images.to(self.device), labels.to(self.device)
        with torch.cuda.stream(self.copies):
            moved = images.to(self.device, non_blocking=True), labels.pin_memory().to(self.device, non_blocking=True)
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self.copies)
        for tensor in moved:
            tensor.record_stream(computing)  # torch's memory is not to be used again before that is done with it
        return moved
