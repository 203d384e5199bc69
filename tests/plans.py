"""Plans of images that do not exist."""

from dataclasses import fields, replace
from typing import Any

import numpy as np

from data.config import AugmentConfig, DataConfig
from data.index import ImageIndex
from data.planning.geometry import BatchGeometry
from data.planning.plan import TrainPlan
from data.sources.synthetic import SyntheticSource

SIDE = 64
# Every augmentation that is 0 by default, switched on.
SWITCHED_ON: dict[str, Any] = {option.name: 0.5 for option in fields(AugmentConfig) if option.default == 0}
NAMED = {
    "mixup": 0.8,
    "cutmix": 1.0,
    "mixup_off_epoch": 9,
    "random_erasing": 0.25,
    "auto_augment": "3a",
    "color_jitter": 0.3,
}
ALL = AugmentConfig(mixup_prob=0.8, mix_group=8, **(SWITCHED_ON | NAMED))


def image_index(count: int = 230) -> ImageIndex:
    """The index of images of many sizes; there are no files."""
    rng = np.random.default_rng(0)
    heights, widths = rng.integers(50, 600, (2, count)).astype(np.int32)
    return replace(SyntheticSource(count, 10, SIDE).index, heights=heights, widths=widths)


def make_plan(
    count: int = 230,
    seed: int = 1,
    augment: AugmentConfig = ALL,
    batch: int = 76,
    world: int = 1,
    rank: int = 0,
    micro: int | None = None,
    **options,
) -> TrainPlan:
    geometry = BatchGeometry(batch, augment.mix_group, world, rank, micro)
    data = DataConfig(name="any", crop=SIDE, interpolation="random", **options)
    return TrainPlan(image_index(count), seed, data, augment, geometry)
