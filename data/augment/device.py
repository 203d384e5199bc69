"""What happens to a batch on the device: augment, normalise, erase, mix, and make the targets."""

import torch
import torch.nn.functional as F
from timm.data.mixup import mixup_target
from torch import Tensor, nn

from data.augment.auto_augment import carry_out
from data.augment.device_draws import DeviceDraws


class DeviceAugment(nn.Module):
    """Makes the model's inputs and the targets from uint8 images and labels; for all backends, on CPU and GPU.

    The arithmetic is timm's (``RandomErasing`` in pixel mode, ``Mixup`` in batch mode, one group at a time). The plan
    says what to do. Only the noise inside erased boxes is drawn here, from torch's default generator.

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
        return images.to(torch.float32, copy=True).sub_(self.mean).div_(self.std)

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
            self._erase(images, draws.erase)
        targets = self._targets(labels, 1.0)
        for mix in draws.mix:
            rows = slice(mix.rows.start, mix.rows.stop)
            mix.apply(images[rows])
            targets[rows] = self._targets(labels[rows], mix.lam)
        return images, targets

    def _targets(self, labels: Tensor, lam: float) -> Tensor:
        return mixup_target(labels, self.num_classes, lam, self.smoothing)

    @staticmethod
    def _erase(images: Tensor, boxes) -> None:
        for image, (top, left, height, width) in zip(images, boxes.tolist(), strict=True):
            if height > 0:
                noise = torch.randn(len(image), height, width, device=image.device)
                image[:, top : top + height, left : left + width] = noise


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy with dense targets, *summed* over the batch, in float32: logits and targets ``(n, classes)``."""
    return F.cross_entropy(logits.float(), targets, reduction="sum")
