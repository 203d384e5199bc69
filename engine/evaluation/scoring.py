"""Score a model so that every image counts exactly once, for any number of processes."""

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
    """The scores of an evaluation. Accuracies are in percent.

    The loss is NaN if an image may have several right labels. ``not_finite`` is the number of images whose logits were
    not finite. They count as wrong, and they can make the loss NaN.
    """

    top1: float
    top5: float
    loss: float
    images: int
    not_finite: int = 0

    def as_dict(self) -> dict[str, float]:
        """Return the scores as a dictionary. ``not_finite`` is left out if it is 0."""
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
    """Score a model on this process's batches, and sum the results over all processes.

    Processes may have different numbers of batches, because they exchange numbers only at the end. An image whose
    labels are all -1 is not counted.

    Args:
        model: returns logits.
        batches: images and labels. Labels have shape ``(n,)``, or ``(n, k)`` for up to k right labels, padded with -1.
        augment: normalises the images.
        runtime: processes, device and precision.
        classes: int64, the classes to choose from; None: all. Labels are indices into it.
        see_logits: called with the logits ``(n, classes)`` of each batch.
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
        log.warning("the model's outputs for %d of %d images are not finite: they count as wrong", bad, seen)
    return Scores(100 * top1 / seen, 100 * top5 / seen, loss / seen, int(seen), int(bad))


def _count(logits: Tensor, labels: Tensor) -> list[Tensor]:
    """Count the results of a batch.

    Returns:
        The number of images that are right in top-1, the number that are right in top-5, the sum of the losses, the
        number of images, and the number of images whose logits are not all finite. The last ones count as wrong.
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
