"""torch's own tests of an optimizer's state, on every optimizer offered here: saving, loading, copies, hooks."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from tests.offered import every_optimizer, every_option


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((10, 5), (6, 3, 2, 2), (10,))]


def take(steps: range, *trained: tuple[list[nn.Parameter], Optimizer]) -> None:
    """Take steps with gradients that depend only on the number of the step."""
    for step in steps:
        for members, optimizer in trained:
            generator = torch.Generator().manual_seed(step)
            for member in members:
                member.grad = torch.randn(member.shape, generator=generator)
            optimizer.step()


def same(a: list[nn.Parameter], b: list[nn.Parameter]) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def tensors(state: dict[str, Any]) -> list[torch.Tensor]:
    return [value for kept in state["state"].values() for value in kept.values() if isinstance(value, torch.Tensor)]


# --- saved and loaded ---------------------------------------------------------------------------------------------


@every_option()
def test_a_saved_state_goes_on_bit_for_bit_and_stays_as_it_was(offered, options):
    whole = parameters()
    optimizer = offered.make(whole, **options)
    take(range(3), (whole, optimizer))
    again = copy.deepcopy(whole)
    saved = through_a_file(optimizer.state_dict())
    untouched = copy.deepcopy(saved)
    resumed = offered.make(again, **options)
    resumed.load_state_dict(saved)
    assert saved["param_groups"] == untouched["param_groups"]
    assert all(torch.equal(a, b) for a, b in zip(tensors(saved), tensors(untouched), strict=True))
    take(range(3, 6), (whole, optimizer), (again, resumed))
    assert same(whole, again)
    ends = [tensors(o.state_dict()) for o in (optimizer, resumed)]
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


@every_optimizer()
def test_a_state_without_a_younger_option_gets_its_default(offered):
    members = parameters()
    optimizer = offered.make(members)
    take(range(2), (members, optimizer))
    options = {"maximize", "foreach", "fused", "capturable", "differentiable", "power_iterations", "caution"}
    for option in sorted(options & optimizer.defaults.keys()):
        state = optimizer.state_dict()
        for group in state["param_groups"]:
            del group[option]
        optimizer.load_state_dict(state)
        take(range(2, 4), (members, optimizer))
        assert option in optimizer.param_groups[0], option


@every_optimizer(muon="timm's never saved any, and takes none")
def test_a_step_count_that_is_a_plain_number_is_taken(offered):
    """Old versions of torch saved it so."""
    whole = parameters()
    optimizer = offered.make(whole)
    take(range(2), (whole, optimizer))
    again = copy.deepcopy(whole)
    state = copy.deepcopy(optimizer.state_dict())
    for kept in state["state"].values():
        if "step" in kept:
            kept["step"] = float(kept["step"])
    resumed = offered.make(again)
    resumed.load_state_dict(state)
    take(range(2, 4), (whole, optimizer), (again, resumed))
    assert same(whole, again)


@every_optimizer()
def test_names_of_parameters_are_saved_and_kept(offered):
    names = ["matrix", "convolution", "bias"]
    members = parameters()
    optimizer = offered.make(list(zip(names, members, strict=True)))
    take(range(2), (members, optimizer))
    state = through_a_file(optimizer.state_dict())
    assert state["param_groups"][0]["param_names"] == names
    unnamed = offered.make(parameters())
    unnamed.load_state_dict(state)
    assert len(unnamed.state) == len(optimizer.state)


@every_optimizer()
def test_a_state_of_other_groups_is_refused_and_changes_nothing(offered):
    members = parameters()
    optimizer = offered.make(members)
    take(range(2), (members, optimizer))
    other = offered.make([{"params": parameters()}, {"params": parameters()}])
    twin, its_optimizer = copy.deepcopy((members, optimizer))
    with pytest.raises(ValueError):
        optimizer.load_state_dict(other.state_dict())
    take(range(2, 4), (members, optimizer), (twin, its_optimizer))
    assert same(members, twin)


# --- cleared, moved, copied ---------------------------------------------------------------------------------------


@every_optimizer(lamb="timm counts the steps of a group outside its state")
def test_a_cleared_state_begins_anew(offered):
    members = parameters()
    optimizer = offered.make(members)
    take(range(3), (members, optimizer))
    fresh = copy.deepcopy(members)
    optimizer.state.clear()
    assert not optimizer.state_dict()["state"]
    its_optimizer = offered.make(fresh)
    take(range(2), (members, optimizer), (fresh, its_optimizer))
    assert optimizer.state_dict()["state"].keys() == its_optimizer.state_dict()["state"].keys()
    for a, b in zip(members, fresh, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


@every_optimizer()
def test_state_tensors_may_be_replaced_by_others(offered):
    """This is the usual way to move an optimizer to a device."""
    members, moved = parameters(), parameters()
    optimizers = [offered.make(p) for p in (members, moved)]
    take(range(3), *zip((members, moved), optimizers, strict=True))
    for kept in optimizers[1].state.values():
        for name, value in kept.items():
            if isinstance(value, torch.Tensor):
                kept[name] = value.clone()
                value.fill_(7)  # the old tensor is no longer used
    take(range(3, 6), *zip((members, moved), optimizers, strict=True))
    assert same(members, moved)


@every_optimizer()
def test_a_moment_that_is_replaced_is_the_one_in_use(offered):
    """A moment set to zero, as in some restart schemes, moves nothing."""
    members = parameters()
    optimizer = offered.make(members, weight_decay=0.0)
    take(range(3), (members, optimizer))
    before = copy.deepcopy(members)
    for member in members:
        member.grad = torch.zeros_like(member)
        for name in {"exp_avg", "momentum_buffer"} & optimizer.state[member].keys():
            optimizer.state[member][name] = torch.zeros_like(member)
    optimizer.step()
    assert same(members, before)


@every_optimizer()
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_goes_on_by_itself(offered, copied):
    members = parameters()
    optimizer = offered.make(members)
    take(range(2), (members, optimizer))
    twin, its_optimizer = copied((members, optimizer))
    assert {n for n in vars(optimizer) if n[0] != "_"} == {n for n in vars(its_optimizer) if n[0] != "_"}
    take(range(2, 4), (members, optimizer))
    assert not same(members, twin)
    take(range(2, 4), (twin, its_optimizer))
    assert same(members, twin)


# --- hooks --------------------------------------------------------------------------------------------------------


@every_optimizer()
def test_hooks_of_a_step_run_once_each(offered):
    members = parameters()
    optimizer = offered.make(members)
    offered.make(parameters())  # torch wraps a class's step when its first instance is made
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    take(range(1), (members, optimizer))
    assert calls == ["before", "after"]


@every_optimizer()
def test_hooks_around_saving_and_loading_run_in_order(offered):
    members = parameters()
    optimizer = offered.make(members)
    take(range(1), (members, optimizer))
    calls: list[str] = []
    optimizer.register_state_dict_pre_hook(lambda *_: calls.append("before saving"))
    optimizer.register_state_dict_post_hook(lambda *_: calls.append("after saving"))
    optimizer.register_load_state_dict_pre_hook(lambda *_: calls.append("before loading"))
    optimizer.register_load_state_dict_pre_hook(lambda *_: calls.append("first"), prepend=True)
    optimizer.register_load_state_dict_post_hook(lambda *_: calls.append("after loading"))
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == ["before saving", "after saving", "first", "before loading", "after loading"]


@every_optimizer()
def test_a_hook_may_translate_a_state_before_anything_looks_at_it(offered):
    whole = parameters()
    optimizer = offered.make(whole)
    take(range(2), (whole, optimizer))
    again = copy.deepcopy(whole)
    resumed = offered.make(again)
    resumed.register_load_state_dict_pre_hook(lambda _, state: state["packed"])
    resumed.load_state_dict({"packed": copy.deepcopy(optimizer.state_dict()), "param_groups": [{}]})
    take(range(2, 4), (whole, optimizer), (again, resumed))
    assert same(whole, again)
