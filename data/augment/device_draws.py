"""What is drawn for a batch: the plan fills it in on the host, the device augmentation carries it out."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.augment.policies import AutoDraws


@dataclass(frozen=True)
class Mix:
    """How the images ``rows`` of a micro-batch are mixed with one another, each with its mirror in the group.

    ``share`` is the weight of the image itself. With ``box`` (top, left, height, width) cutmix, without mixup.
    """

    rows: range
    share: float
    box: tuple[int, int, int, int] | None


@dataclass(frozen=True)
class DeviceDraws:
    """Draws for the augmentation that happens on the device batch."""

    erase: NDArray[np.int32] | None  # (n, 4) top, left, height, width; height 0 = not erased
    mix: list[Mix]
    auto: AutoDraws | None = None
    cubic: NDArray[np.bool_] | None = None  # (n, layers of auto) whether movements are interpolated bicubically
