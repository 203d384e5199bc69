"""The draws for a batch: the plan makes them on the host, the device augmentation carries them out."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.augment.mixing import Mix
from data.augment.policies import AutoDraws


@dataclass(frozen=True)
class DeviceDraws:
    """Draws for the augmentation that happens on the device batch."""

    erase: NDArray[np.int32] | None  # (n, 4) top, left, height, width; height 0 = not erased
    mix: list[Mix]
    auto: AutoDraws | None = None
    cubic: NDArray[np.bool_] | None = None  # (n, layers of auto) whether auto interpolates bicubically
    noise: int = 0  # seed of the noise in erased boxes
