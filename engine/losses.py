"""Training losses of dense targets, each *summed* over the images, so that the parts of a batch add up; in float32."""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from engine.options.config import TrainConfig

Loss = Callable[[Tensor, Tensor], Tensor]


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy: logits and targets ``(n, classes)``."""
    return F.cross_entropy(logits.float(), targets, reduction="sum")


def binary_cross_entropy(
    logits: Tensor, targets: Tensor, threshold: float | None = None, sum_classes: bool = False
) -> Tensor:
    """Binary cross-entropy of each class, as timm's ``BinaryCrossEntropy`` computes it.

    Args:
        logits: ``(n, classes)``.
        targets: ``(n, classes)``; mixed and smoothed targets are probabilities.
        threshold: targets above it count as 1 and all others as 0; ``None`` takes them as they are. With 0, both
            classes of a mixed image count as 1 (DeiT III, Touvron et al. 2022).
        sum_classes: whether an image's loss is the sum over its classes, not the mean.
    """
    if threshold is not None:
        targets = targets.gt(threshold).to(targets.dtype)
    total = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="sum")
    return total if sum_classes else total / logits.shape[1]


def training_loss(cfg: TrainConfig) -> Loss:
    """The loss that the options choose."""
    if cfg.loss == "ce":
        return soft_cross_entropy
    return partial(binary_cross_entropy, threshold=cfg.bce_target_thresh, sum_classes=cfg.bce_sum)
