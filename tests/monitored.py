"""Small models, and what the stability monitor reads of them."""

from collections.abc import Callable

import timm
import torch
from torch import Tensor, nn

import models  # noqa: F401  (registers the models)
from optim import SpectralNorms, param_groups
from stability import StabilityMonitor, StabilityReport

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
LIPSFORMER = {"img_size": 28, "depths": (1, 1), "embed_dim": 12, "num_heads": (1, 2)}


def small(name: str) -> tuple[nn.Module, Tensor]:
    """A small model and a batch for it."""
    options = LIPSFORMER if "lipsformer" in name else SIZES
    return timm.create_model(name, num_classes=5, **options), torch.randn(
        6, 3, options["img_size"], options["img_size"]
    )


def read(name: str = "vit_preln_small", build: Callable = torch.optim.AdamW):
    """A model, its weights before a step, its gradients, the batch, the reading of the step and the optimizer."""
    model, images = small(name)
    optimizer = build(param_groups(model), lr=1e-2)
    monitor = StabilityMonitor(model, SpectralNorms(optimizer), most_images=4)
    nn.functional.cross_entropy(model(images), torch.arange(6) % 5).backward()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    monitor.before_update(images)
    optimizer.step()
    optimizer.zero_grad()
    return model, before, gradients, images, monitor.after_update(), optimizer


def reading(model: nn.Module, images: Tensor) -> StabilityReport:
    monitor = StabilityMonitor(model, dict)
    monitor.before_update(images)
    return monitor.after_update()
