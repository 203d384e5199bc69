"""Exact evaluation: over all processes every image counts once."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data import Batch, DeviceAugment
from engine.distributed import World
from engine.stepper import autocast


@dataclass(frozen=True)
class Scores:
    """What an evaluation found; accuracies in percent. The loss is NaN where an image may have several answers."""

    top1: float
    top5: float
    loss: float
    images: int

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    augment: DeviceAugment,
    world: World,
    device: torch.device,
    amp: str,
    memory_format: torch.memory_format = torch.contiguous_format,
    classes: Tensor | None = None,
) -> Scores:
    """Score a model on this process's batches, summed over all processes.

    Processes may have different numbers of batches: nothing is exchanged before the end. An image whose labels are all
    -1 counts for nothing.

    Args:
        model: gives logits.
        batches: images and labels; labels ``(n, k)`` are k right answers, filled up with -1.
        augment: normalises.
        world: this process among all.
        device: the model's.
        amp: ``"bf16"``, ``"fp16"`` or ``"fp32"``.
        memory_format: of the images.
        classes: int64, the classes to choose among, where not all; labels are places in it.
    """
    model.eval()
    classes = classes.to(device) if classes is not None else None
    totals = torch.zeros(4, dtype=torch.float64, device=device)  # top-1, top-5, loss, images
    for batch in batches:
        images = augment.normalise(batch.images).contiguous(memory_format=memory_format)
        with autocast(device, amp):
            logits = model(images)
        logits = logits.float() if classes is None else logits.float()[:, classes]
        totals += torch.stack(_count(logits, batch.labels)).double()
    top1, top5, loss_sum, images_seen = world.sum(totals).tolist()
    return Scores(100 * top1 / images_seen, 100 * top5 / images_seen, loss_sum / images_seen, int(images_seen))


def _count(logits: Tensor, labels: Tensor) -> list[Tensor]:
    """Of a batch: the images whose best, and whose best five, hold a right answer; the sum of losses; images."""
    answers = labels.view(len(labels), -1)
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    right = (best.unsqueeze(2) == answers.unsqueeze(1)).any(2)
    if labels.ndim == 1:
        loss = F.cross_entropy(logits, labels, reduction="sum")
    else:
        loss = torch.full((), torch.nan, device=logits.device)
    return [right[:, 0].sum(), right.any(1).sum(), loss, (answers >= 0).any(1).sum()]
