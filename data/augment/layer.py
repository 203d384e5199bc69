"""One operation for each image of a batch, and how its numbers reach the device."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.augment.levels import Floats, Op
from data.transfer import send


@dataclass(frozen=True)
class Layer:
    """One operation for each image. The images are sorted by operation. The numbers are on the host.

    Attributes:
        ops: the operations, ``(n,)`` of :class:`Op`.
        args: their arguments, ``(n,)``.
        cubic: whether rotations, shears and translations interpolate bicubically, else bilinearly, ``(n,)``.
        fill: colour of pixels that come from outside the image, uint8 ``(1, 3, 1, 1)`` on the device.
    """

    ops: NDArray[np.int8]
    args: Floats
    cubic: NDArray[np.bool_]
    fill: Tensor

    def __getitem__(self, rows: slice) -> "Layer":
        return replace(self, ops=self.ops[rows], args=self.args[rows], cubic=self.cubic[rows])

    def rows(self, *ops: Op) -> list[slice]:
        """The images with these operations, which are neighbours in :class:`Op`: one slice, or none without images."""
        first, last = np.searchsorted(self.ops, [min(ops), max(ops) + 1]).tolist()
        return [slice(first, last)] if first < last else []

    def column(self, device: torch.device) -> Tensor:
        """The arguments on the device, float32 ``(n, 1, 1, 1)``."""
        return send(device, self.args.astype(np.float32).reshape(-1, 1, 1, 1))
