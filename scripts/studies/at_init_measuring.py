"""Gradients and activations of each block of Pre-LN and Post-LN models at initialisation."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

import models  # noqa: F401  # registers them
from scripts.studies.origin import commit_now

CLASSES = 10
POSITIONS = ("post", "pre")


@dataclass(frozen=True)
class Measured:
    """One block of one model.

    Attributes:
        model: which of the study's models.
        position: ``pre`` or ``post``.
        depth: blocks of the model.
        seed: of its weights and images.
        block: number of the block, from 1 at the input.
        gradient: Frobenius norm of the loss's mean gradient for the second weight of the block's MLP.
        size: mean of ``‖x‖² / d``: before the block's last norm in Post-LN, after the block in Pre-LN.
        commit: the project's commit, see :class:`scripts.studies.results.Origin`.
    """

    model: str
    position: str
    depth: int
    seed: int
    block: int
    gradient: float
    size: float
    commit: str


def measure(init: dict[str, Any]) -> Iterator[Measured]:
    """Measure the blocks of all models that a study names under ``init``."""
    wanted = [
        (name, position, depth, seed)
        for name in init["models"]
        for position in POSITIONS
        for depth in init["depths"]
        for seed in range(init["first_seed"], init["first_seed"] + init["seeds"])
    ]
    for name, position, depth, seed in tqdm(wanted, desc="at initialisation", unit="model", disable=None, leave=False):
        torch.manual_seed(seed)
        model = timm.create_model(
            f"vit_{position}ln_small", num_classes=CLASSES, depth=depth, **init["models"][name]
        ).train()
        shared = torch.Generator().manual_seed(seed)
        gradients, sizes = _gradients_and_sizes(model, position, init["batches"], init["images"], shared)
        for block, (gradient, size) in enumerate(zip(gradients, sizes, strict=True), 1):
            yield Measured(name, position, depth, seed, block, gradient, size, commit_now())


def _gradients_and_sizes(
    model: Any, position: str, batches: int, images: int, shared: torch.Generator
) -> tuple[list[float], list[float]]:
    """The values of each block, over batches of random images whose pixels have mean 0 and variance 1.

    The classifier, the images and their labels come from ``shared``. So they are the same at every depth, and their
    chance does not count as an effect of the depth.
    """
    with torch.no_grad():
        classifier = model.head.weight
        classifier.copy_(torch.randn(classifier.shape, generator=shared) * classifier.std())
    sizes: dict[int, list[float]] = defaultdict(list)

    def note(block: int, x: torch.Tensor) -> None:
        sizes[block].append(x.detach().square().mean().item())

    for number, block in enumerate(model.blocks):
        if position == "post":
            block.norm2.register_forward_pre_hook(lambda _, x, at=number: note(at, x[0]))
        else:
            block.register_forward_hook(lambda _, __, y, at=number: note(at, y))
    weights: list[nn.Parameter] = [block.mlp.fc2.weight for block in model.blocks]
    total = [torch.zeros_like(weight) for weight in weights]
    for _ in range(batches):
        x = torch.randn(images, 3, *model.patch_embed.img_size, generator=shared)
        loss = F.cross_entropy(model(x), torch.randint(CLASSES, (images,), generator=shared))
        for sum_, gradient in zip(total, torch.autograd.grad(loss, weights), strict=True):
            sum_ += gradient / batches
    return [gradient.norm().item() for gradient in total], [fmean(sizes[n]) for n in range(len(weights))]
