"""What a GPU and CUDA graphs need of AdamW²: no waiting for numbers, and tensors that stay in place."""

import copy
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import models  # noqa: F401  (registers the models)
from optim import AdamW2, param_groups
from tests.dispatches import Dispatches, NoHostCopies
from tests.twins import set_gradients, small_model

assert_equal = partial(assert_close, rtol=0, atol=0, equal_nan=True)


def test_the_modes_of_these_tests_find_what_reads_a_number():
    for read in (
        lambda: torch.ones(()).item(),
        lambda: bool(torch.ones(()) > 0),
        lambda: torch.ones(3)[torch.ones(3) > 0],
    ):
        with pytest.raises(AssertionError, match="wait"), Dispatches():
            read()
    for copy_to_host in (Tensor.tolist, Tensor.cpu, Tensor.numpy, np.asarray):
        with pytest.raises(AssertionError, match="wait"), NoHostCopies():
            copy_to_host(torch.ones(3))


@pytest.mark.parametrize("tau", [0.03, float("inf")])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_step_reads_no_number_and_takes_few_operations(device, tau):
    """On a GPU each operation launches a kernel. Meta tensors hold no values, so reading one is an error."""
    with torch.device(device):
        model = small_model() if device == "cpu" else timm.create_model("lipsformer_swin_tiny")
    optimizer = AdamW2(param_groups(model), 1e-3, tau=tau)
    counts = []
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        with Dispatches() if device == "cpu" else nullcontext():
            optimizer.step()
        with Dispatches() as mode:
            optimizer.step()
        counts.append(mode.count)
    assert counts[0] == counts[1] == counts[2] <= 1200
    print(f"{device}, tau {tau}: {counts[0]} operations")


@pytest.mark.parametrize("is_unscaled", [True, False], ids=["unscaled before", "unscaled by the step"])
@pytest.mark.parametrize("tau", [0.01, float("inf")])
def test_under_a_gradient_scaler_it_reads_no_number_and_a_step_that_overflows_changes_nothing(tau, is_unscaled):
    """Only a step with new matrices waits. Scales are powers of two, so scaling loses no precision."""
    plain, scaled = small_model(), small_model()
    plain.load_state_dict(scaled.state_dict())
    ours, theirs = (AdamW2(param_groups(model), 1e-2, tau=tau) for model in (scaled, plain))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step, overflows in enumerate((True, False, False, True, True, False)):
        scale = scaler.scale(torch.ones(())).item()
        set_gradients(scaled, plain, step=step)
        torch._foreach_mul_([p.grad for p in scaled.parameters()], scale)
        if overflows:
            next(scaled.parameters()).grad[0] = torch.inf
        before = copy.deepcopy((scaled.state_dict(), ours.state_dict()["state"]))
        with Dispatches() if step > 1 or tau == float("inf") else nullcontext():
            if is_unscaled:
                scaler.unscale_(ours)
            scaler.step(ours)
            scaler.update()
        assert scaler.get_scale() == (scale / 2 if overflows else scale)
        if not overflows:
            theirs.step()
        elif step > 0:
            assert_equal(before, (scaled.state_dict(), ours.state_dict()["state"]))
        assert_equal(scaled.state_dict(), plain.state_dict())
    assert_equal(ours.state_dict()["state"], theirs.state_dict()["state"])


def test_all_that_changes_stays_where_it_is_in_memory():
    """A CUDA graph reads and writes the addresses that it was recorded with."""
    model = small_model()
    optimizer = AdamW2(param_groups(model), torch.tensor(1e-2), tau=0.01)
    set_gradients(model, step=0)
    optimizer.step()

    def addresses() -> list[int]:
        kept = [value for state in optimizer.state.values() for value in state.values()]
        return [tensor.data_ptr() for tensor in (*model.parameters(), *kept)]

    before, values = addresses(), copy.deepcopy(optimizer.state_dict()["state"])
    optimizer.step()
    assert addresses() == before
    after = optimizer.state_dict()["state"]
    assert not any(torch.equal(values[i][name], after[i][name]) for i in values for name in values[i])


def test_a_learning_rate_may_be_a_tensor_that_changes_in_place():
    ours, rate = small_model(), torch.tensor(1e-2)
    theirs = copy.deepcopy(ours)
    a, b = AdamW2(param_groups(ours), rate, tau=0.01), AdamW2(param_groups(theirs), 1e-2, tau=0.01)
    for step in range(4):
        if step == 2:
            rate.fill_(1e-3)
            for group in b.param_groups:
                group["lr"] = 1e-3
        set_gradients(ours, theirs, step=step)
        a.step()
        b.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("target", ["cpu", "meta"])
def test_a_state_moves_to_the_parameters_device_and_its_step_number_too(target):
    """torch leaves the step number on its old device, but the fused kernel needs it on the parameter's device."""
    model = small_model()
    optimizer = AdamW2(param_groups(model), 1e-2, tau=0.01)
    set_gradients(model, step=0)
    optimizer.step()
    state = optimizer.state_dict()
    with torch.device(target):
        moved = small_model().bfloat16()
    again = AdamW2(param_groups(moved), 1e-2, tau=0.01)
    again.load_state_dict(state)
    for parameter in moved.parameters():
        kept = again.state[parameter]
        assert {value.device.type for value in kept.values()} == {target}
        assert {kept[name].dtype for name in kept.keys() - {"exp_avg", "exp_avg_sq"}} == {torch.float32}
        assert kept["exp_avg"].dtype == torch.bfloat16
        parameter.grad = torch.ones_like(parameter)
    with Dispatches():
        again.step()


@pytest.mark.slow
def test_a_compiled_step_agrees():
    ours = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3))
    theirs = copy.deepcopy(ours)
    a, b = (AdamW2(m.parameters(), torch.tensor(1e-2), tau=0.01) for m in (ours, theirs))
    compiled = torch.compile(a.step)
    for step in range(4):
        set_gradients(ours, theirs, step=step)
        compiled()
        b.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
def test_a_cuda_graph_of_a_step_agrees():
    ours = small_model().cuda()
    theirs = copy.deepcopy(ours)
    a, b = (AdamW2(param_groups(m), torch.tensor(1e-2, device="cuda"), tau=0.01) for m in (ours, theirs))
    set_gradients(ours, theirs, step=0)
    a.step()
    b.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        a.step()
    for step in range(1, 4):
        gradients = [parameter.grad for parameter in ours.parameters()]
        set_gradients(theirs, step=step)
        torch._foreach_copy_(gradients, [parameter.grad for parameter in theirs.parameters()])
        graph.replay()
        b.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-5, atol=1e-6)
