"""An optimizer's step as a CUDA graph gives the same bits as without."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from optim import AdamW2, GraphedStep, param_groups
from tests.twins import set_gradients, small_model

assert_equal = partial(assert_close, rtol=0, atol=0)


def twins(lr: float = 1e-2) -> tuple[nn.Module, AdamW2, nn.Module, AdamW2]:
    """Two equal models on the GPU with their optimizers. The second one's rate is a tensor, as a graph needs it."""
    ours = small_model().cuda()
    theirs = copy.deepcopy(ours)
    rate = torch.tensor(lr, device="cuda")
    return ours, AdamW2(param_groups(ours), lr, tau=0.01), theirs, AdamW2(param_groups(theirs), rate, tau=0.01)


def set_rate(plain: AdamW2, optimizer: AdamW2, lr: float) -> None:
    """Set both learning rates, each in its own form."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    plain.param_groups[0]["lr"].fill_(lr)


def test_on_a_cpu_no_step_is_recorded():
    assert not GraphedStep.suits(AdamW2(param_groups(small_model()), 1e-2))


@pytest.mark.gpu
def test_recorded_steps_give_the_bits_of_plain_ones():
    """The rate changes, a gradient is missing in two steps, and a state is loaded: the graph follows."""
    ours, a, theirs, b = twins()
    step, recorded = GraphedStep(a), set()
    missing = next(ours.parameters()), next(theirs.parameters())
    assert GraphedStep.suits(a)
    for number in range(10):
        set_rate(b, a, 1e-2 / (1 + number))
        set_gradients(ours, theirs, step=number)
        if number in (4, 5):
            for parameter in missing:
                parameter.grad = None
        if number == 8:
            a.load_state_dict(copy.deepcopy(a.state_dict()))
        gradients = [p.grad for p in ours.parameters()]
        step()
        b.step()
        recorded.add(step.graph)
        assert all(p.grad is gradient for p, gradient in zip(ours.parameters(), gradients, strict=True))
        assert [group["lr"] for group in a.param_groups] == [1e-2 / (1 + number)] * len(a.param_groups)
        assert_equal(ours.state_dict(), theirs.state_dict())
    assert_equal(a.state_dict()["state"], b.state_dict()["state"])
    assert len(recorded - {None}) == 4  # at the start, with and again without the missing gradient, after the loading
