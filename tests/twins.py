"""Models that must train alike: a small LipsFormer, equal random gradients for several models, a check of equality."""

import torch
from torch import nn
from torch.optim import Optimizer

from models import build_model
from tests.runs import settings


def small_model() -> nn.Module:
    cfg = settings("model=lipsformer_swin_mini", "model.embed_dim=12", "model.depths=[1,1]", "data=fashion_mnist")
    return build_model(cfg.model, 10, 28)


def set_gradients(*twins: nn.Module, step: int) -> None:
    """Give all models the same random gradients, whose sizes differ much between parameters."""
    generator = torch.Generator().manual_seed(step)
    for same_parameters in zip(*(model.parameters() for model in twins), strict=True):
        size = 10 ** (4 * torch.rand((), generator=generator) - 3)
        grad = size * torch.randn(same_parameters[0].shape, generator=generator)
        for twin in same_parameters:
            twin.grad = grad.clone().to(twin)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def step_alike(steps: int, *trained: tuple[nn.Module, Optimizer]) -> None:
    """Let each optimizer step its model; the gradients are the same for all."""
    for step in range(steps):
        set_gradients(*(model for model, _ in trained), step=step)
        for _, optimizer in trained:
            optimizer.step()
