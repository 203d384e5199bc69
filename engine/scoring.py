"""Exact evaluation: over all processes every image counts once."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import nn

from data import Batch, DeviceAugment
from engine.distributed import World
from engine.stepper import autocast


@dataclass(frozen=True)
class Scores:
    """What an evaluation found; accuracies in percent."""

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
) -> Scores:
    """Score a model on this process's batches, summed over all processes.

    Processes may have different numbers of batches: nothing is exchanged before the end.
    """
    model.eval()
    totals = torch.zeros(4, dtype=torch.float64, device=device)  # top-1, top-5, loss, images
    for batch in batches:
        images = augment.normalise(batch.images).contiguous(memory_format=memory_format)
        with autocast(device, amp):
            logits = model(images)
        logits = logits.float()
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices == batch.labels.view(-1, 1)
        loss = F.cross_entropy(logits, batch.labels, reduction="sum")
        count = torch.tensor(len(batch.labels), device=device)
        totals += torch.stack([best[:, 0].sum(), best.sum(), loss, count]).double()
    top1, top5, loss_sum, images_seen = world.sum(totals).tolist()
    return Scores(100 * top1 / images_seen, 100 * top5 / images_seen, loss_sum / images_seen, int(images_seen))
