"""Mixing: each image of a group is combined with another image of the group, and so are their targets."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.random import Generator
from torch import Tensor

from data.config import AugmentConfig

Box = tuple[int, int, int, int]  # top, left, height, width


class Mix(Protocol):
    """How the images of a group are mixed: the i-th image with the i-th image from the end.

    Attributes:
        rows: the group's rows in the micro-batch.
        lam: λ, the weight of the image itself in its target. The other image has the rest.
    """

    @property
    def rows(self) -> slice: ...

    @property
    def lam(self) -> float: ...

    def apply(self, images: Tensor) -> None:
        """Change the group's images, normalised float32 ``(n, 3, side, side)``, in place."""
        ...


@dataclass(frozen=True)
class Mixup:
    """Blend two images (Zhang et al., ICLR 2018)."""

    rows: slice
    lam: float

    def apply(self, images: Tensor) -> None:
        """See :class:`Mix`."""
        images.lerp_(images.flip(0), 1 - self.lam)


@dataclass(frozen=True)
class Cutmix:
    """Paste a box of one image into the other (Yun et al., ICCV 2019)."""

    rows: slice
    lam: float
    box: Box

    def apply(self, images: Tensor) -> None:
        """See :class:`Mix`."""
        top, left, height, width = self.box
        area = images[..., top : top + height, left : left + width]
        area.copy_(area.flip(0))


def draw_mix(augment: AugmentConfig, rng: Generator, rows: slice, side: int) -> Mix | None:
    """Draw how to mix a group; None to leave it unmixed. The distribution is that of timm's Mixup in batch mode.

    Args:
        augment: the options; with mixing in this epoch.
        rng: a generator that depends only on the seed, the epoch and the group's position.
        rows: the group's rows in the micro-batch.
        side: side of the images in pixels.
    """
    if rng.random() >= augment.mixup_prob:
        return None
    if augment.cutmix > 0 and (augment.mixup == 0 or rng.random() < augment.mixup_switch_prob):
        return _cutmix(augment.cutmix, rng, rows, side)
    if augment.mixup > 0:
        return Mixup(rows, float(rng.beta(augment.mixup, augment.mixup)))
    return None


def _cutmix(alpha: float, rng: Generator, rows: slice, side: int) -> Cutmix:
    """Draw a box of random size around a random point. Only the part inside the image counts."""
    cut_side = int(side * np.sqrt(1 - float(rng.beta(alpha, alpha))))
    y, x = (int(rng.integers(side)) for _ in range(2))
    top, bottom = max(y - cut_side // 2, 0), min(y + (cut_side + 1) // 2, side)
    left, right = max(x - cut_side // 2, 0), min(x + (cut_side + 1) // 2, side)
    box = (top, left, bottom - top, right - left)
    return Cutmix(rows, 1 - box[2] * box[3] / side**2, box)
