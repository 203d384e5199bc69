"""The micro-batches of a training run, augmented and with targets. A GPU makes them during the step before."""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from data import Batch, DeviceAugment, on_stream
from engine.measuring.span import span
from engine.runtime import Runtime


class TrainBatch(NamedTuple):
    """A micro-batch as the model gets it.

    Attributes:
        images: augmented and normalised, float32 ``(n, 3, side, side)``.
        targets: ``(n, num_classes)``.
    """

    images: Tensor
    targets: Tensor


def prepare(batch: Batch, augment: DeviceAugment, runtime: Runtime) -> TrainBatch:
    """Augment a batch and make its targets. The result depends on nothing but the batch and its draws."""
    assert batch.draws is not None
    images, targets = augment(batch.images, batch.labels, batch.draws)
    return TrainBatch(runtime.laid_out(images), targets)


class TrainBatches:
    """An iterator over prepared batches. It also measures how long steps wait for images.

    On a GPU, batches are prepared on a CUDA stream of their own. A step asks for its batch when the GPU still computes
    the step before, because the host only puts steps into the GPU's queue. So the GPU does both at the same time.

    The measured time is that in which the GPU has nothing to compute for the model because the next images are missing.
    A host that waits while the GPU is busy loses nothing. On a CPU it is the time until the images are there.

    Args:
        batches: the batches, before augmentation.
        prepare: turns a batch into the model's input.
        device: where the steps are computed.
    """

    def __init__(
        self, batches: Generator[Batch, None, None], prepare: Callable[[Batch], TrainBatch], device: torch.device
    ):
        self.batches, self.prepare = batches, prepare
        self.side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.waits: deque[tuple[Any, Any]] = deque()  # when each wait began and ended

    def pop_waited(self) -> float:
        """Return the seconds waited since the last call. Waits that the GPU has yet to reach count in a later call."""
        waited = 0.0
        while self.waits and (self.side is None or self.waits[0][1].query()):
            began, ended = self.waits.popleft()
            waited += ended - began if self.side is None else began.elapsed_time(ended) / 1000
        return waited

    def __iter__(self) -> Iterator[TrainBatch]:
        return self

    def __next__(self) -> TrainBatch:
        batch = self._read()
        with span("augment"):
            return on_stream(self.side, lambda: self.prepare(batch))

    def _read(self) -> Batch:
        """Return the next batch. On a GPU it is for the side stream: only that stream may use it."""
        began = self._now()
        try:
            with torch.cuda.stream(self.side), span("data wait"):
                return next(self.batches)
        finally:
            if self.side is not None:  # so that the GPU reaches the event below only when the images are there
                torch.cuda.current_stream(self.side.device).wait_stream(self.side)
            self.waits.append((began, self._now()))

    def _now(self) -> float | torch.cuda.Event:
        """Return the time; on a GPU an event, which gets its time when the GPU's queue reaches it."""
        if self.side is None:
            return perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def close(self) -> None:
        """Stop reading ahead."""
        self.batches.close()
