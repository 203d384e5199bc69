"""The plan: which image comes next and how it is changed, as pure functions of (seed, epoch, position).

A position is a place in the epoch's global order. The training plan is the same for any number of processes. The
backends and the device augmentation only carry it out.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from data.augment.device import DeviceDraws
from data.augment.mixing import Mix, draw_mix
from data.augment.policies import AutoDraws, policies
from data.config import AugmentConfig, DataConfig, evaluation_side
from data.index import ImageIndex
from data.planning.crops import BOXES, TRIES, Crops, centre_crops, random_erase_boxes
from data.planning.draws import Stream, generator_at, uniforms
from data.planning.geometry import BatchGeometry
from data.planning.order import epoch_order, subset_rows, without_bad


class TrainPlan:
    """The plan of a training run.

    Args:
        index: the training images.
        seed: the run's seed.
        data: crop size, interpolation, and which images to use.
        augment: the augmentations to draw.
        geometry: how the global batch is cut.

    Raises:
        DataError: if ``augment.auto_augment`` is not a known policy.
    """

    def __init__(self, index: ImageIndex, seed: int, data: DataConfig, augment: AugmentConfig, geometry: BatchGeometry):
        self.index = index
        self.seed = seed
        self.data = data
        self.augment = augment
        self.geometry = geometry
        self.rows = subset_rows(index.targets, data.subset)  # rows of the index to train on
        self.policies = policies(augment.auto_augment, augment.color_jitter, data.crop)
        self.order = lru_cache(maxsize=2)(self._order)

    @property
    def steps_per_epoch(self) -> int:
        """Number of full global batches in an epoch. The remaining images are left out; they differ between epochs."""
        return len(self.rows) // self.geometry.batch_size

    def _order(self, epoch: int) -> NDArray[np.int64]:
        targets, repeats = self.index.targets[self.rows], self.augment.repeats
        order = epoch_order(self.seed, epoch, targets, self.geometry.batch_size, repeats, self.data.balanced)
        return self.rows[order]

    def images_of(self, step: int) -> NDArray[np.int64]:
        """Rows of the image index in an optimizer step, counted from 0, for all processes together."""
        epoch, first = self._begin(step)
        return self.order(epoch)[first : first + self.geometry.batch_size]

    def positions(self, step: int) -> list[tuple[int, range]]:
        """``(epoch, positions)`` of each micro-batch of this process in an optimizer step, counted from 0."""
        epoch, first = self._begin(step)
        return [(epoch, range(first + r.start, first + r.stop)) for r in self.geometry.micro_batches]

    def _begin(self, step: int) -> tuple[int, int]:
        """The epoch of an optimizer step, and its first position there."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        return epoch, step_in_epoch * self.geometry.batch_size

    def count_replaced(self, epoch: int, positions: range, bad: frozenset[int]) -> int:
        """How many of the images at these positions are bad and therefore replaced."""
        return int(np.isin(self.order(epoch)[positions.start : positions.stop], list(bad)).sum()) if bad else 0

    def crops(self, epoch: int, positions: range, bad: frozenset[int] = frozenset()) -> Crops:
        """Which images are at these positions, where to crop them, and whether to mirror them.

        Each image whose row is in ``bad`` is replaced with another one, drawn for its position.
        """
        index = self.order(epoch)[positions.start : positions.stop]
        if bad:
            index = without_bad(self.seed, epoch, positions.start, index, self.rows, bad)
        n, start = len(positions), positions.start
        u = uniforms(self.seed, epoch, Stream.CROP, start, n, 4 * TRIES)
        height, width = self.index.heights[index], self.index.widths[index]
        box = BOXES[self.augment.crop_by](u, height, width, self.augment.scale, self.augment.ratio)
        flip = uniforms(self.seed, epoch, Stream.FLIP, start, n, 1)[:, 0] < self.augment.hflip
        size = np.full((n, 2), self.data.crop, dtype=np.int32)
        window, cubic = np.zeros((n, 2), dtype=np.int32), self._cubic(epoch, positions)[:, 0]
        return Crops(index=index, box=box, size=size, window=window, flip=flip, cubic=cubic)

    def _cubic(self, epoch: int, positions: range) -> NDArray[np.bool_]:
        """Whether to interpolate bicubically, else bilinearly: ``(n, 1 + layers)``; the first column is resizing."""
        shape = len(positions), 1 + sum(policy.layers for policy in self.policies)
        if self.data.interpolation != "random":
            return np.full(shape, self.data.interpolation == "bicubic")
        return uniforms(self.seed, epoch, Stream.INTERPOLATION, positions.start, *shape) < 0.5

    def device_draws(self, epoch: int, positions: range) -> DeviceDraws:
        """What the device augmentation does to the batch at these positions.

        The noise has one seed for the whole batch, because a GPU draws it for many images at once. So the pixels in
        erased boxes also depend on where the global batch is cut.
        """
        erase, noise = None, 0
        if self.augment.random_erasing > 0:
            u = uniforms(self.seed, epoch, Stream.ERASE, positions.start, len(positions), 1 + 4 * TRIES)
            erase = random_erase_boxes(u, self.augment.random_erasing, self.data.crop)
            noise = int(generator_at(self.seed, epoch, Stream.NOISE, positions.start).integers(2**63))
        mix = []
        if self.augment.mixes_in(epoch):
            groups = self.geometry.groups_in(positions)
            mix = [m for rows in groups if (m := self._mix(epoch, positions.start, rows))]
        auto = self._auto(epoch, positions)
        return DeviceDraws(erase, mix, auto, None if auto is None else self._cubic(epoch, positions)[:, 1:], noise)

    def _auto(self, epoch: int, positions: range) -> AutoDraws | None:
        if not self.policies:
            return None
        ends = np.cumsum([policy.uniforms for policy in self.policies])
        u = uniforms(self.seed, epoch, Stream.AUTO, positions.start, len(positions), ends[-1])
        parts = zip(self.policies, np.split(u, ends[:-1], axis=1), strict=True)
        return AutoDraws.joined([policy.draw(part) for policy, part in parts])

    def _mix(self, epoch: int, first: int, rows: slice) -> Mix | None:
        rng = generator_at(self.seed, epoch, Stream.MIX, first + rows.start)
        return draw_mix(self.augment, rng, rows, self.data.crop)


class EvalPlan:
    """The plan of an evaluation: every image once, in index order, resized and cropped at the centre.

    Args:
        index: the images.
        data: sizes and interpolation; ``random`` means bicubic here.
    """

    def __init__(self, index: ImageIndex, data: DataConfig):
        self.index = index
        self.data = data

    def crops(self, rows: range) -> Crops:
        """The crops of the images in these rows of the index."""
        index = np.arange(rows.start, rows.stop)
        height, width = self.index.heights[index], self.index.widths[index]
        side, cubic = evaluation_side(self.data), self.data.interpolation != "bilinear"
        return centre_crops(index, height, width, side, self.data.crop, cubic, self.data.crop_mode == "squash")
