"""Gradient clipping, measured by how far one step of SGD moves the weights."""

import pytest
import torch

from models import build_model
from tests.runs import SMALL, checkpoint, settings, train_here

LR, CLIP = 0.5, 1e-3
SGD = ("optim=sgd", f"optim.lr={LR}", "optim.momentum=0", "optim.weight_decay=0", "optim.light_decay=0")


def moves(mode: str, root, here) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Each weight before the first step, and the change that the step made."""
    options = (*SMALL, *SGD, f"optim.clip={CLIP}", f"optim.clip_mode={mode}", f"data.root={root}", "max_steps=1")
    train_here(*options, f"name={mode}")
    cfg = settings(*options)
    torch.manual_seed(cfg.seed)
    before = build_model(cfg.model, 10, cfg.data.crop).state_dict()
    after = checkpoint(here / f"outputs/{mode}")["model"]
    return {name: (before[name], after[name] - before[name]) for name in after if before[name].is_floating_point()}


def test_by_norm_all_together(small_images, here):
    found = moves("norm", small_images, here).values()
    assert torch.cat([step.flatten() for _, step in found]).norm().item() == pytest.approx(LR * CLIP, rel=1e-3)


def test_by_value_each_entry(small_images, here):
    largest = max(step.abs().max().item() for _, step in moves("value", small_images, here).values())
    assert largest == pytest.approx(LR * CLIP, rel=1e-3)


def test_adaptively_each_row_but_the_classifier_s(small_images, here):
    found = moves("agc", small_images, here)
    head = found.pop("head.weight")[1]
    assert head.norm() > 100 * LR * CLIP
    for name, (weight, step) in found.items():
        if weight.ndim >= 2:
            allowed = LR * CLIP * weight.flatten(1).norm(dim=1).clamp_min(1e-3)
            assert (step.flatten(1).norm(dim=1) <= allowed * (1 + 1e-2) + 1e-7).all(), name


def test_another_mode_is_refused():
    with pytest.raises(ValueError, match=r"optim\.clip_mode=norms is unknown: did you mean norm\?"):
        settings("optim.clip_mode=norms")
