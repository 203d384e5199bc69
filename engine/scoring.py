"""Exact evaluation: over all processes every image counts once."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data import Batch, DeviceAugment
from engine.runtime import Runtime

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scores:
    """What an evaluation found; accuracies in percent.

    The loss is NaN where an image may have several answers, or the model gave logits that are not finite: of so many
    images, ``not_finite``, which count as wrong.
    """

    top1: float
    top5: float
    loss: float
    images: int
    not_finite: int = 0

    def as_dict(self) -> dict[str, float]:
        """As it is written down: without a word of what is not finite where all is well."""
        return {name: value for name, value in asdict(self).items() if name != "not_finite" or value}


@torch.inference_mode()
def score(
    model: nn.Module,
    batches: Iterable[Batch],
    augment: DeviceAugment,
    runtime: Runtime,
    classes: Tensor | None = None,
    see_logits: Callable[[Tensor], None] | None = None,
) -> Scores:
    """Score a model on this process's batches, summed over all processes.

    Processes may have different numbers of batches: nothing is exchanged before the end. An image whose labels are all
    -1 counts for nothing.

    Args:
        model: gives logits.
        batches: images and labels; labels ``(n, k)`` are k right answers, filled up with -1.
        augment: normalises.
        runtime: processes, device and precision.
        classes: int64, the classes to choose among, where not all; labels are places in it.
        see_logits: gets the logits ``(n, classes)`` of each batch.
    """
    model.eval()
    classes = classes.to(runtime.device) if classes is not None else None
    totals = torch.zeros(5, dtype=torch.float64, device=runtime.device)  # top-1, top-5, loss, images, not finite
    for batch in batches:
        images = runtime.laid_out(augment.normalise(batch.images))
        with runtime.autocast():
            logits = model(images)
        logits = logits.float() if classes is None else logits.float()[:, classes]
        if see_logits is not None:
            see_logits(logits)
        totals += torch.stack(_count(logits, batch.labels)).double()
    top1, top5, loss, seen, bad = runtime.world.sum(totals).tolist()
    if bad and runtime.world.is_main:
        log.warning("the model's answers on %d of %d images are not finite: they count as wrong", bad, seen)
    return Scores(100 * top1 / seen, 100 * top5 / seen, loss / seen, int(seen), int(bad))


def _count(logits: Tensor, labels: Tensor) -> list[Tensor]:
    """Of a batch: the images whose best, and whose best five, hold a right answer; the sum of losses; images.

    Last, the images whose logits are not all finite: no answer of theirs is right.
    """
    answers = labels.view(len(labels), -1)
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    finite = logits.isfinite().all(1)
    right = (best.unsqueeze(2) == answers.unsqueeze(1)).any(2) & finite.unsqueeze(1)
    if labels.ndim == 1:
        loss = F.cross_entropy(logits, labels, reduction="sum")
    else:
        loss = torch.full((), torch.nan, device=logits.device)
    counts = (answers >= 0).any(1)
    return [right[:, 0].sum(), right.any(1).sum(), loss, counts.sum(), (counts & ~finite).sum()]
