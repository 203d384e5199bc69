"""What happens to a batch on the device: augment, normalise, erase, mix, and make the targets."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from timm.data.mixup import one_hot
from torch import Tensor, nn

from data.augment.auto_augment import carry_out
from data.augment.mixing import Mix
from data.augment.policies import AutoDraws
from data.transfer import send, send_together

# How many images take their noise from one draw, which covers the smallest area that holds their boxes. Another number
# would give the images other noise.
ERASED_AT_ONCE = {"cpu": 1, "cuda": 64}


@dataclass(frozen=True)
class DeviceDraws:
    """What happens to a batch: the plan draws it on the host, and :class:`DeviceAugment` carries it out."""

    erase: NDArray[np.int32] | None  # (n, 4) top, left, height, width; height 0 = not erased
    mix: list[Mix]
    auto: AutoDraws | None = None
    cubic: NDArray[np.bool_] | None = None  # (n, layers of auto) whether auto interpolates bicubically
    noise: int = 0  # seed of the noise in erased boxes


class DeviceAugment(nn.Module):
    """Makes the model's inputs and the targets from uint8 images and labels; for all backends, on CPU and GPU.

    Erasing, mixup and cutmix are timm's (``RandomErasing`` in pixel mode, ``Mixup`` in batch mode, a group at a time).
    The plan says what to do, and seeds the noise inside erased boxes. So the result is a pure function of the batch and
    its draws: it does not depend on when it is computed.

    Args:
        mean: per channel, in [0, 1].
        std: per channel, in [0, 1].
        num_classes: number of columns of the targets.
        smoothing: label smoothing.
    """

    mean: Tensor
    std: Tensor
    fill: Tensor

    def __init__(self, mean: list[float], std: list[float], num_classes: int, smoothing: float = 0.0):
        super().__init__()
        self.num_classes = num_classes
        self.smoothing = smoothing
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1) * 255, persistent=False)
        # timm's colour for pixels that come from outside an image
        fill = torch.tensor([min(255, round(255 * value)) for value in mean], dtype=torch.uint8)
        self.register_buffer("fill", fill.view(1, -1, 1, 1), persistent=False)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 ``(n, 3, side, side)`` to float32 of the same shape."""
        return (images - self.mean).div_(self.std)

    def denormalise(self, images: Tensor) -> Tensor:
        """The inverse of :meth:`normalise`, clipped to uint8."""
        return (images * self.std + self.mean).round().clamp(0, 255).byte()

    @torch.no_grad()
    def forward(self, images: Tensor, labels: Tensor, draws: DeviceDraws) -> tuple[Tensor, Tensor]:
        """uint8 ``(n, 3, side, side)`` and labels ``(n,)`` to float32 images and targets ``(n, num_classes)``."""
        if draws.auto is not None:
            images = carry_out(images, draws.auto, draws.cubic, self.fill)
        images = self.normalise(images)
        if draws.erase is not None:
            at_once = ERASED_AT_ONCE[images.device.type]
            generator = torch.Generator(images.device).manual_seed(draws.noise)
            for start in range(0, len(images), at_once):
                _erase(images[start : start + at_once], draws.erase[start : start + at_once], generator)
        for mix in draws.mix:
            mix.apply(images[mix.rows])
        return images, self._targets(labels, draws.mix)

    def _targets(self, labels: Tensor, mixes: list[Mix]) -> Tensor:
        """timm's ``mixup_target`` of each group, computed for all groups together."""
        off = self.smoothing / self.num_classes
        own = one_hot(labels, self.num_classes, 1 - self.smoothing + off, off)
        if not mixes:
            return own
        lam, other = np.ones((len(labels), 1)), np.arange(len(labels))
        for mix in mixes:
            lam[mix.rows], other[mix.rows] = mix.lam, other[mix.rows][::-1]
        weight, rest = send_together(labels.device, lam.astype(np.float32), (1 - lam).astype(np.float32))
        return own * weight + own.index_select(0, send(labels.device, other)) * rest


def _erase(images: Tensor, boxes: NDArray[np.int32], generator: torch.Generator) -> None:
    """Fill a box in each image with noise, which is drawn for the smallest area that holds all boxes."""
    some = boxes[:, 2] > 0
    if not some.any():
        return
    first, last = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    (top, left), (bottom, right) = first[some].min(axis=0).tolist(), last[some].max(axis=0).tolist()
    y, x = np.arange(top, bottom), np.arange(left, right)
    rows, columns = (first[:, :1] <= y) & (y < last[:, :1]), (first[:, 1:] <= x) & (x < last[:, 1:])
    inside_y, inside_x = send_together(images.device, rows[:, None, :, None], columns[:, None, None, :])
    area = images[:, :, top:bottom, left:right]
    noise = torch.randn(area.shape, device=images.device, generator=generator)
    area.copy_(torch.where(inside_y & inside_x, noise, area))
