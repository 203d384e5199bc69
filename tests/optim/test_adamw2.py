"""AdamW² equals AdamW where nothing is capped."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from optim import AdamW2, param_groups
from tests.twins import same, small_model, step_alike

INF = float("inf")


def beside_torch_s(steps: int, tau: float, dtype: torch.dtype, **kernel: bool) -> tuple[nn.Module, nn.Module]:
    """The small model after steps of AdamW² and of torch's AdamW. One group has options of its own."""

    def groups(model: nn.Module) -> list[dict[str, Any]]:
        first, *others = param_groups(model, 0.05, 5e-4)
        return [first | {"betas": (0.8, 0.95), "eps": 1e-4}, *others]

    ours = small_model().to(dtype)
    theirs = copy.deepcopy(ours)
    options = {"lr": 1e-3, "betas": (0.9, 0.98), "weight_decay": 0.05, "eps": 1e-8}
    a = AdamW2(groups(ours), tau=tau, **options)
    b = torch.optim.AdamW(groups(theirs), **options, **kernel)
    step_alike(steps, (ours, a), (theirs, b))
    return ours, theirs


def farthest(ours: nn.Module, theirs: nn.Module) -> float:
    """The largest difference between two parameters, relative to the norm."""
    both = zip(ours.parameters(), theirs.parameters(), strict=True)
    return max(((p - q).norm() / q.norm()).item() for p, q in both)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_with_an_infinite_tau_it_is_torch_s_fused_adamw_bit_for_bit(dtype):
    assert same(*beside_torch_s(20, INF, dtype, fused=True))


@pytest.mark.parametrize("tau", [INF, 1e9])
def test_where_nothing_is_capped_it_stays_with_torch_s_plain_adamw(tau):
    assert farthest(*beside_torch_s(100, tau, torch.float32, foreach=True)) <= 1e-6


@pytest.mark.parametrize("tau", [0.01, INF])
@pytest.mark.parametrize("of", ["weights and gradients", "gradients"])
def test_it_takes_the_same_step_in_another_memory_layout(tau, of):
    start = torch.randn(8, 3, 4, 4)
    moved = []
    for layout in (torch.contiguous_format, torch.channels_last):
        weight = nn.Parameter(start.clone().to(memory_format=layout if of != "gradients" else torch.contiguous_format))
        optimizer = AdamW2([weight], 1e-2, tau=tau)
        for step in range(3):
            gradient = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(step))
            weight.grad = gradient.to(memory_format=layout)
            optimizer.step()
        moved.append(weight.detach())
    assert torch.allclose(*moved, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("decay", [1e-6, 1e-8, 1e-12, 1e-30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_tiny_decay_is_almost_none(decay, dtype):
    start, grads = torch.randn(512, 128, dtype=dtype) / 8, torch.rand(10, 512, 128, dtype=dtype)
    ends = []
    for weight_decay in (decay, 0.0):
        weight = nn.Parameter(start.clone())
        optimizer = AdamW2([weight], 1e-2, weight_decay=weight_decay)
        for grad in grads:
            weight.grad = grad
            optimizer.step()
        ends.append(weight.detach())
    assert torch.allclose(*ends, rtol=1e-6, atol=1e-6) and (ends[0] - start).abs().max() > 1e-3


def test_half_precision_stays_finite_with_any_decay():
    for decay in (0.0, 1e-6, 5e-4, 0.05):
        weight = nn.Parameter(torch.randn(32, 16).half())
        before = weight.detach().clone()
        optimizer = AdamW2([weight], 1e-3, weight_decay=decay)
        for size in (1e-4, 1e-4, 1.0):  # the first squares underflow to 0, so the steps are mean / eps
            weight.grad = size * torch.randn(32, 16).half()
            optimizer.step()
        assert weight.isfinite().all() and not torch.equal(weight, before)


def test_what_is_no_matrix_and_what_is_zero_moves_as_under_adamw():
    torch.manual_seed(0)
    parts = [torch.randn(5), torch.zeros(4, 3), torch.randn(7, 3)]
    ours, theirs = ([nn.Parameter(p.clone()) for p in parts] for _ in range(2))
    groups = [{"params": ours[:2]}, {"params": ours[2:], "cap": False}]
    a, b = AdamW2(groups, lr=0.1, tau=1e-6), torch.optim.AdamW(theirs, lr=0.1, weight_decay=0.05, fused=True)
    for p, q in zip(ours, theirs, strict=True):
        p.grad = q.grad = torch.randn(p.shape)
    a.step()
    b.step()
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))
