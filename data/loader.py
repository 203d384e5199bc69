"""The loader: a backend makes the images of a plan, and the loader brings them to the device as labelled batches."""

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.augment.device import DeviceDraws
from data.backends import Backend
from data.concurrency.waiting import no_check
from data.errors import BadImage, DataError
from data.planning.crops import Crops
from data.planning.geometry import shard
from data.planning.plan import EvalPlan, TrainPlan
from data.transfer import on_stream, send

log = logging.getLogger(__name__)

P = TypeVar("P")
MOST_BAD = 0.01  # a running training stops if a larger share of its images cannot be read


@dataclass(frozen=True)
class Batch:
    """One micro-batch on the device.

    Attributes:
        images: uint8 ``(n, 3, side, side)``.
        labels: int64 ``(n,)``; in evaluation also ``(n, k)``, see :class:`data.EvalImages`.
        index: rows of the image index, on the host.
        draws: what the device augmentation does to the batch; ``None`` in evaluation.
    """

    images: Tensor
    labels: Tensor
    index: NDArray[np.int64]
    draws: DeviceDraws | None


class Loader:
    """Makes labelled batches on a device from the images of a backend.

    Args:
        backend: makes the images.
        labels: int64, one label for each row of the image index, ``(images,)``, or several, ``(images, k)``.
        device: where batches go.
        skip_bad: whether training takes another image if one cannot be read. The plan decides which one, so it is the
            same for any number of processes.
        look: called about once a second while the loader waits for a batch; it may raise to stop the waiting.

    Attributes:
        bad: rows of the images that could not be read so far.
    """

    def __init__(
        self,
        backend: Backend,
        labels: NDArray[np.int64],
        device: torch.device,
        skip_bad: bool = False,
        look: Callable[[], object] = no_check,
    ):
        self.backend = backend
        self.labels = labels
        self.device = device
        self.skip_bad = skip_bad
        self.look = look
        self.bad: frozenset[int] = frozenset()
        self.copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    def train(self, plan: TrainPlan, first_step: int, last_step: int) -> Generator[Batch, None, None]:
        """This process's micro-batches of the optimizer steps ``first_step … last_step - 1``, in order."""
        places = (place for step in range(first_step, last_step) for place in plan.positions(step))
        replaced = 0

        def draws_at(place: tuple[int, range]) -> tuple[Crops, DeviceDraws]:
            return plan.crops(*place, self.bad), plan.device_draws(*place)

        try:
            for place, batch in self._batches(places, draws_at, partial(self._replace, len(plan.rows))):
                replaced += plan.count_replaced(*place, self.bad)
                yield batch
        finally:
            if replaced:
                log.error(
                    "%d times an image was replaced by another, because %d images cannot be read",
                    replaced,
                    len(self.bad),
                )

    def evaluate(self, plan: EvalPlan, batch_size: int, world_size: int, rank: int) -> Generator[Batch, None, None]:
        """This process's share of all images, in batches; together the processes see every image once.

        An image that cannot be read is an error, because leaving it out would change the score.
        """
        mine = shard(len(plan.index), world_size, rank)
        rows = (range(start, min(start + batch_size, mine.stop)) for start in range(mine.start, mine.stop, batch_size))
        for _, batch in self._batches(rows, lambda rows: (plan.crops(rows), None), self._refuse):
            yield batch

    def _replace(self, images: int, error: BadImage) -> None:
        """Leave a bad image out from now on, or raise the error. ``images`` is the number of images to train on."""
        if error.row is None or not self.skip_bad:
            raise error
        if not self.bad:
            log.error("%s. Until then another image replaces it (data.on_bad_image=skip)", error)
        self.bad |= {error.row}
        if len(self.bad) > min(1 + MOST_BAD * images, images - 1):
            raise DataError(
                f"{len(self.bad)} of the training images cannot be read, which is too many to leave out: {error}"
            )

    def _refuse(self, error: BadImage) -> None:
        raise error

    def _batches(
        self,
        places: Iterator[P],
        draws_at: Callable[[P], tuple[Crops, DeviceDraws | None]],
        handle: Callable[[BadImage], None],
    ) -> Generator[tuple[P, Batch], None, None]:
        """Each place with its batch. A backend takes places ahead, so the draws are ready before a step needs them.

        If the backend stops at a bad image, ``handle`` either raises or makes ``draws_at`` leave that image out. The
        backend then starts again from the first place whose batch is missing. It also starts again, once for each
        place, if all images of the failed batch can be read after all: a disk or network may have failed for a moment.
        """
        asked: deque[tuple[P, Crops, DeviceDraws | None]] = deque()  # what the backend has taken and not yet made
        again: deque[P] = deque()  # places that it has to take once more
        retried: P | None = None  # the place for which it was started again although no image was bad

        def requests() -> Iterator[Crops]:
            while (place := again.popleft() if again else next(places, None)) is not None:
                asked.append((place, *draws_at(place)))
                yield asked[-1][1]

        while True:
            try:
                with closing(self.backend.batches(requests(), self.look)) as stream:
                    for images in stream:
                        place, crops, draws = asked.popleft()
                        images, labels = self._to_device(images, self.labels[crops.index])
                        yield place, Batch(images, labels, crops.index, draws)
                return
            except BadImage as error:
                again.extendleft(place for place, *_ in reversed(asked))
                asked.clear()
                if error.row is None and again[0] != retried:
                    retried = again[0]
                    log.warning("%s; trying again", error)
                else:
                    handle(error)

    def _to_device(self, images: Tensor, labels: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Copy to the device. Copies to a GPU use their own stream, so they run while the GPU still computes a step."""
        return on_stream(self.copies, lambda: (images.to(self.device, non_blocking=True), send(self.device, labels)))
