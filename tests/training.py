"""A few training steps of a model without the engine."""

from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import to_tensor

Batches = Sequence[tuple[Tensor, Tensor]]


def real_batches(root: Path, side: int, most: int | None = None) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Shuffled batches of 32 images of an image folder, with labels; the first ``most`` of them."""
    classes = sorted(path for path in (root / "train").iterdir() if path.is_dir())
    files = [(file, label) for label, folder in enumerate(classes) for file in sorted(folder.iterdir())]
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(0))
    taken = [files[i] for i in order[: most and 32 * most].tolist()]
    images = torch.stack([to_tensor(Image.open(file).convert("RGB").resize((side, side))) for file, _ in taken])
    return list(zip(images.split(32), torch.tensor([label for _, label in taken]).split(32), strict=True))


def twenty_losses(model: nn.Module, amp: str, batches: Batches, lr: float) -> list[float]:
    """The losses of 20 steps with a constant learning rate; the batches are repeated.

    Args:
        model: the model to train; may be compiled.
        amp: ``fp32`` or ``bf16``.
        batches: images and labels.
        lr: learning rate of AdamW.
    """
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=lr)
    losses = []
    for images, labels in islice(cycle(batches), 20):
        with torch.autocast("cpu", torch.bfloat16, enabled=amp == "bf16"):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def losses_on_noise(build: Callable[[], nn.Module], amp: str) -> list[float]:
    """:func:`twenty_losses` of a model with 5 classes, on one batch of 8 random images of 32 pixels."""
    torch.manual_seed(0)
    model = build()
    return twenty_losses(model, amp, [(torch.randn(8, 3, 32, 32), torch.randint(5, (8,)))], lr=5e-3)
