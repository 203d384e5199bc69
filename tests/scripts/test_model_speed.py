"""The released operations, which the benchmark compares with, compute the same as the models."""

import pytest
import timm
import torch

import models  # noqa: F401  (registers the models)
from scripts.bench.as_released import AsReleased

SMALL = {
    "lipsformer_swin_tiny": {"img_size": 28, "patch_size": 2, "embed_dim": 12, "depths": (1, 1), "num_heads": (2, 4)},
    "lipsformer_cswin_tiny": {
        "img_size": 32,
        "embed_dim": 8,
        "depths": (1, 1, 1),
        "num_heads": (2, 2, 4),
        "stripes": (1, 2, 2),
    },
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("recompute", [True, False])
def test_the_released_operations_give_the_same_values_and_gradients(name, recompute):
    torch.manual_seed(0)
    model = timm.create_model(name, **SMALL[name]).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    side = SMALL[name]["img_size"]
    x = torch.randn(2, 3, side, side, dtype=torch.float64)
    gradients = []
    for network in (model, AsReleased(model, recompute)):
        y = network(x)
        gradients.append((y.detach(), *torch.autograd.grad(y.square().sum(), list(model.parameters()))))
    assert AsReleased(model.float(), recompute)(x.float()).shape == (2, 1000)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(theirs, ours, atol=1e-9, rtol=1e-7)
