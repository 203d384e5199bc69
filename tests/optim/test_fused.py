"""torch's fused optimizers against torch's own plain loops, in memory layouts that the kernels alone get wrong."""

import copy

import pytest
import torch
from torch import nn

from optim.fused import FusedAdamW, FusedSGD

PAIRS = [
    (FusedAdamW, torch.optim.AdamW, {"betas": (0.9, 0.98), "weight_decay": 0.1}),
    (FusedSGD, torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
]


def weights() -> list[nn.Parameter]:
    """One parameter is dense but transposed in memory, one has gaps, one is contiguous."""
    table = torch.randn(12, 14)
    return [nn.Parameter(x) for x in (torch.randn(5, 7).mT, table[::2, ::2], torch.randn(3, 4))]


def dense() -> list[nn.Parameter]:
    """Three parameters without gaps, for which the fused kernel is used."""
    return [nn.Parameter(torch.randn(shape)) for shape in ((5, 7), (3, 4), (6,))]


@pytest.mark.parametrize("make", [weights, dense])
@pytest.mark.parametrize(("ours", "theirs", "options"), PAIRS)
def test_it_takes_the_steps_of_torch_s_plain_loop(ours, theirs, options, make):
    members = make()
    reference = copy.deepcopy(members)
    a, b = ours(members, lr=0.1, **options), theirs(reference, lr=0.1, foreach=False, **options)
    for step in range(5):
        for i, (p, q) in enumerate(zip(members, reference, strict=True)):
            gradient = torch.randn(p.shape)
            if p.ndim == 2:
                gradient = gradient.mT.contiguous().mT  # transposed in memory
            p.grad = q.grad = None if i == 2 and step < 2 else gradient
        a.step()
        b.step()
    assert all(group["fused"] for group in a.param_groups) == (make is dense)
    for p, q in zip(members, reference, strict=True):
        assert torch.allclose(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("ours", "theirs", "options"), PAIRS)
def test_on_plain_memory_it_is_torch_s_fused_optimizer_bit_for_bit(ours, theirs, options):
    members = [nn.Parameter(torch.randn(shape)) for shape in ((33, 17), (5,), (4, 3, 2, 2))]
    reference = copy.deepcopy(members)
    a, b = ours(members, lr=0.1, **options), theirs(reference, lr=0.1, fused=True, **options)
    for _ in range(5):
        for p, q in zip(members, reference, strict=True):
            p.grad = q.grad = torch.randn(p.shape)
        a.step()
        b.step()
    assert all(torch.equal(p, q) for p, q in zip(members, reference, strict=True))
    assert all(group["fused"] for group in a.param_groups)


@pytest.mark.parametrize(("ours", "theirs", "options"), PAIRS)
def test_a_state_saved_in_another_layout_goes_on(ours, theirs, options):
    """As in a run that is resumed with another memory format."""
    plain = nn.Parameter(torch.randn(6, 3, 4, 4))
    turned = nn.Parameter(plain.detach().to(memory_format=torch.channels_last))
    a, b = (ours([member], lr=0.1, **options) for member in (plain, turned))
    for step in range(4):
        plain.grad = torch.randn(plain.shape)
        turned.grad = plain.grad.clone()
        a.step()
        if step < 2:  # b has not started yet, and takes over the weights and the state of a
            turned.data.copy_(plain.data)
            b.load_state_dict(copy.deepcopy(a.state_dict()))
        else:
            b.step()
    assert torch.allclose(plain, turned, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("ours", "theirs", "options"), PAIRS)
@pytest.mark.parametrize("members", [weights, lambda: [nn.Parameter(torch.ones(3, 4))]], ids=["gaps", "dense"])
def test_under_a_gradient_scaler_it_takes_the_steps_of_torch_s_plain_loop(ours, theirs, options, members):
    mine = members()
    reference = copy.deepcopy(mine)
    for parameters, kind, how in ((mine, ours, {}), (reference, theirs, {"foreach": False})):
        optimizer, scaler = kind(parameters, lr=0.1, **options, **how), torch.amp.GradScaler("cpu", init_scale=8.0)
        for step in range(4):
            optimizer.zero_grad()
            loss = sum(p.square().sum() for p in parameters) * (float("inf") if step == 1 else 1)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    for p, q in zip(mine, reference, strict=True):
        assert p.isfinite().all() and torch.allclose(p, q, rtol=1e-5, atol=1e-6)
