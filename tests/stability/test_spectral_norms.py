"""The spectral norms that the monitor asks an optimizer for."""

from statistics import median

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models  # noqa: F401  (registers the models)
from optim import AdamW2, OptimError, SpectralNorms, param_groups, power_iteration
from tests.dispatches import Dispatches
from tests.monitored import read
from tests.training import real_batches

READING = 1700  # operations of a reading of lipsformer_swin_tiny, at most


def test_a_reading_does_not_change_the_optimizer():
    *_, optimizer = read(build=AdamW2)
    before = [v.clone() for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
    SpectralNorms(optimizer)()
    after = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("named", [False, True])
def test_the_groups_must_be_ours(named):
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(layer.named_parameters() if named else layer.parameters(), lr=0.1)
    with pytest.raises(OptimError, match="param_groups"):
        SpectralNorms(optimizer)


def test_an_optimizer_without_matrices_has_none():
    assert SpectralNorms(torch.optim.SGD(param_groups(nn.LayerNorm(4)), lr=0.1))() == {}


def test_values_of_weights_that_train_between_readings_are_within_a_percent(small_images):
    """Five readings, 25 steps apart. Training with AdamW turns the singular vectors between them."""
    model = timm.create_model("vit_preln_small", img_size=28, patch_size=7, embed_dim=48, depth=2, num_heads=2)
    optimizer = torch.optim.AdamW(param_groups(model), lr=2e-3)
    batches, norms = real_batches(small_images, 28), SpectralNorms(optimizer)
    weights, errors = dict(model.named_parameters()), []
    for step in range(101):
        images, labels = batches[step % len(batches)]
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 25 == 0:
            for layer, found in norms().items():
                owner, _, part = layer.rpartition(".") if layer.endswith((".q", ".k", ".v")) else (layer, "", "")
                weight = weights[f"{owner}.weight"].detach().flatten(1)
                matrix = weight.chunk(3)["qkv".index(part)] if part else weight
                errors.append(1 - (found / torch.linalg.matrix_norm(matrix, 2)).item())
    print(f"median {median(errors):.2%}, worst {max(errors):.2%}")
    assert -1e-5 < min(errors) and median(errors) < 0.01 and max(errors) < 0.05


@pytest.mark.parametrize("build", [torch.optim.AdamW, AdamW2])
def test_a_reading_takes_few_iterations_and_the_host_does_not_wait(build, monkeypatch):
    """On a GPU each operation launches a kernel."""
    iterate, calls = power_iteration.iterate, []
    monkeypatch.setattr(power_iteration, "iterate", lambda *stacks: calls.append(1) or iterate(*stacks))
    with torch.device("meta"):
        model = timm.create_model("lipsformer_swin_tiny")
    optimizer = AdamW2(param_groups(model), 1e-3) if build is AdamW2 else build(param_groups(model), 1e-3)
    if build is AdamW2:  # it makes its vectors in its first step
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    norms = SpectralNorms(optimizer)
    norms()
    calls.clear()
    with Dispatches() as mode:
        assert len(norms()) == 113
    print(f"{build.__name__}: {mode.count} operations")
    assert len(calls) <= 3 and mode.count <= READING
