"""A few training steps of a model alone, without the engine."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn


def twenty_losses(build: Callable[[], nn.Module], amp: str, size: int = 32, classes: int = 5) -> list[float]:
    """The losses of 20 steps at full learning rate on one batch of 32 random images; amp is ``fp32`` or ``bf16``."""
    torch.manual_seed(0)
    model = build().train()
    images, labels = torch.randn(32, 3, size, size), torch.randint(classes, (32,))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(20):
        with torch.autocast("cpu", torch.bfloat16, enabled=amp == "bf16"):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
