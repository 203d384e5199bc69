"""Weight caps: no matrix exceeds the limit after a step, under any optimizer, and a resume goes on bit for bit."""

import pytest
import timm
import torch
from torch import nn

import models
from optim import OptimConfig, OptimError, build_optimizer
from optim.build import OPTIMIZERS
from optim.weight_cap import cap_weights
from tests.runs import SMALL, checkpoint, losses, same_tensors, train_here

LIMIT = 0.8


def sizes(optimizer: torch.optim.Optimizer) -> list[float]:
    """σ₁ of every capped matrix."""
    return [
        torch.linalg.matrix_norm(part.flatten(1).double(), 2).item()
        for group in optimizer.param_groups
        if group["cap"]
        for parameter in group["params"]
        for part in parameter.detach().chunk(group["splits"])
    ]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    images, labels = torch.randn(8, 3, 28, 28), torch.randint(10, (8,))
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_matrix_exceeds_the_limit_after_a_step(name):
    torch.manual_seed(0)
    model = timm.create_model("lipsformer_swin_mini")
    optimizer = build_optimizer(OptimConfig(name=name, lr=1e-2, weight_cap=LIMIT), model, 64)
    assert max(sizes(optimizer)) > LIMIT
    for _ in range(4):
        train(model, optimizer, 1)
        assert max(sizes(optimizer)) <= 1.002 * LIMIT


def test_smaller_matrices_stay_as_they_are():
    torch.manual_seed(0)
    capped, free = (nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2)) for _ in range(2))
    free.load_state_dict(capped.state_dict())
    for model, limit in ((capped, 50.0), (free, None)):
        optimizer = build_optimizer(OptimConfig(name="adamw", lr=1e-2, weight_cap=limit), model, 64)
        for _ in range(3):
            model(torch.ones(2, 6)).sum().backward()
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(capped.parameters(), free.parameters(), strict=True))


def test_each_of_queries_keys_and_values_is_capped_for_itself():
    layer = nn.Linear(4, 12, bias=False)
    model = nn.ModuleDict({"qkv": layer})
    with torch.no_grad():
        layer.weight.copy_(torch.cat([torch.eye(4), 2 * torch.eye(4), 0.5 * torch.eye(4)]))
    optimizer = build_optimizer(OptimConfig(name="sgd", lr=1e-9, weight_decay=0, weight_cap=1.0), model, 64)
    layer(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    assert sizes(optimizer) == pytest.approx([1.0, 1.0, 0.5], rel=1e-3)


def test_the_lipschitz_bound_of_a_model_stays_small():
    """Here at least ten times smaller than without the limit."""
    torch.manual_seed(0)
    model = timm.create_model("lipsformer_swin_mini", attention="certified", epsilon=0.1)
    optimizer = build_optimizer(OptimConfig(name="adamw", lr=5e-2, weight_cap=LIMIT), model, 64)
    train(model, optimizer, 3)
    capped = models.lipschitz_bound(model).log10_tight
    free = timm.create_model("lipsformer_swin_mini", attention="certified", epsilon=0.1)
    train(free, build_optimizer(OptimConfig(name="adamw", lr=5e-2), free, 64), 3)
    assert capped < models.lipschitz_bound(free).log10_tight - 1


def test_groups_from_elsewhere_are_refused():
    with pytest.raises(OptimError, match=r"a weight cap needs groups of optim\.param_groups\(model\)"):
        cap_weights(torch.optim.AdamW(nn.Linear(2, 2).parameters()), 1.0)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw2", "muon"])
def test_a_resumed_run_goes_on_bit_for_bit(optimizer, small_images, here):
    capped = (f"optim={optimizer}", "optim.lr=2e-3", "optim.weight_cap=1.0")
    common = (*SMALL, f"data.root={small_images}", *capped, "name=a")
    train_here(*common, "output_dir=whole", "max_steps=8")
    train_here(*common, "output_dir=part", "max_steps=5")
    train_here(*common, "output_dir=part", "max_steps=8")
    assert same_tensors(checkpoint(here / "whole")["model"], checkpoint(here / "part")["model"])
    assert losses(here / "whole") == losses(here / "part")
