"""torch's own tests of optimizers, on every optimizer offered here: options, errors, steps in every memory layout."""

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from optim import OptimConfig, build_optimizer
from optim.build import OPTIMIZERS
from tests.offered import OFFERED, Offered, cases, every_optimizer, every_option

LAYOUTS = {
    "contiguous": lambda x: x.clone(),
    "strided": lambda x: torch.stack([x, x], dim=-1)[..., 0],
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "channels_last": lambda x: x.to(memory_format=torch.channels_last) if x.ndim == 4 else x.clone(),
}


def parameters(layout: str = "contiguous") -> list[nn.Parameter]:
    """A matrix, a convolution weight and a bias with fixed values, in one memory layout."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((10, 5), (6, 3, 4, 4), (10,))
    return [nn.Parameter(LAYOUTS[layout](torch.randn(shape, generator=generator))) for shape in shapes]


def set_grads(members: list[nn.Parameter], step: int, layout: str = "contiguous") -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for member in members:
        member.grad = LAYOUTS[layout](torch.randn(member.shape, generator=generator))


def refuse(offered: Offered, case: cases.ErrorOptimizerInput) -> None:
    given = case.optimizer_error_input
    optimizer = offered.make([nn.Parameter(torch.ones(2, 2))] if given.params is None else given.params, **given.kwargs)
    if case.error_on is cases.OptimizerErrorEnum.STEP_ERROR:
        optimizer.step()


def test_these_are_all_that_the_options_offer():
    model = nn.Linear(2, 2)
    built = {type(build_optimizer(OptimConfig(name=name), model, 512)) for name in OPTIMIZERS}
    assert built == {type(offered.make(model.parameters())) for offered in OFFERED}


# --- what is refused ----------------------------------------------------------------------------------------------


@every_optimizer()
def test_what_torch_refuses_is_refused_in_one_line(offered):
    """Each error has the type that torch's own tests expect."""
    for case in offered.errors:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(case.error_type) as caught:
                refuse(offered, case)
        assert "\n" not in str(caught.value).strip(), case


@every_optimizer()
def test_sparse_gradients_are_refused(offered):
    parameter = nn.Parameter(torch.ones(4, 3))
    optimizer = offered.make([parameter])
    parameter.grad = torch.sparse_coo_tensor([[0, 2]], torch.ones(2, 3), (4, 3), check_invariants=True)
    with pytest.raises(RuntimeError):
        optimizer.step()
    assert torch.equal(parameter, torch.ones(4, 3))


@every_optimizer(lamb="timm's trust ratio of complex weights is another", muon="timm's takes them as matrices")
def test_complex_parameters_are_refused_or_step_as_pairs_of_numbers(offered):
    pairs, complex_ones = nn.Parameter(torch.ones(4, 3, 2)), nn.Parameter(torch.ones(4, 3) + 1j * torch.ones(4, 3))
    pairs.grad = torch.randn(4, 3, 2)
    complex_ones.grad = torch.view_as_complex(pairs.grad)
    try:
        offered.make([complex_ones]).step()
    except (ValueError, RuntimeError):
        assert torch.equal(complex_ones, torch.ones(4, 3) + 1j * torch.ones(4, 3))
        return
    offered.make([pairs]).step()
    assert torch.equal(torch.view_as_real(complex_ones), pairs)


# --- steps --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["contiguous", "strided"])
@every_option()
def test_it_goes_the_right_direction(offered, options, layout):
    weight, _, bias = parameters(layout)
    optimizer = offered.make([weight, bias], **options)
    inputs = torch.randn(5)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (weight.mv(inputs) + bias).square().sum()
        loss.backward()
        return loss

    before = closure().item()
    assert "lr" in repr(optimizer)
    for _ in range(10):
        loss = optimizer.step(closure)
    assert isinstance(loss, Tensor)
    after = closure().item()
    assert after > before if options.get("maximize") else after < before


@every_optimizer()
def test_the_memory_layout_changes_no_step(offered):
    """The layouts of parameters and of gradients; the first pair is contiguous."""
    pairs = [("contiguous", "contiguous"), *((kind, kind) for kind in LAYOUTS)]
    pairs += [pair for kind in LAYOUTS for pair in ((kind, "contiguous"), ("contiguous", kind))]
    ends = {}
    for pair in pairs:
        members = parameters(pair[0])
        optimizer = offered.make(members, lr=1e-2)
        for step in range(2):
            set_grads(members, step, pair[1])
            optimizer.step()
        ends[pair] = members
    for pair, members in ends.items():
        for a, b in zip(ends["contiguous", "contiguous"], members, strict=True):
            assert torch.allclose(a, b, rtol=1e-5, atol=1e-6), pair


@every_optimizer()
def test_an_expanded_gradient_is_its_copy(offered):
    ends = []
    for expanded in (False, True):
        members = parameters("transposed")
        optimizer = offered.make(members, lr=1e-2)
        for step in range(3):
            set_grads(members, step)
            for member in members:
                one = member.grad[:1].expand_as(member)
                member.grad = one if expanded else one.clone()
            optimizer.step()
        ends.append(members)
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(*ends, strict=True))


@every_optimizer()
def test_parameters_that_change_their_layout_between_steps_go_on(offered):
    plain, moved = parameters(), parameters()
    optimizers = [offered.make(members, lr=1e-2) for members in (plain, moved)]
    for step in range(4):
        if step == 2:
            for member in moved:
                member.data = LAYOUTS["transposed"](member.data)
        for members, optimizer in zip((plain, moved), optimizers, strict=True):
            set_grads(members, step)
            optimizer.step()
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(plain, moved, strict=True))


@every_option()
def test_gradients_are_read_and_never_written(offered, options):
    members = parameters()
    optimizer = offered.make(members, **options)
    for step in range(2):
        set_grads(members, step)
        before = [member.grad.clone() for member in members]
        optimizer.step()
        assert all(torch.equal(a, member.grad) for a, member in zip(before, members, strict=True))


@every_option()
def test_without_gradients_a_step_does_nothing(offered, options):
    members = parameters()
    before = copy.deepcopy(members)
    optimizer = offered.make(members, **options)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, members, strict=True))


@every_optimizer()
def test_gradients_of_zero_leave_only_the_decay(offered):
    members = parameters()
    before = copy.deepcopy(members)
    optimizer = offered.make(members, weight_decay=0.0)
    for member in members:
        member.grad = torch.zeros_like(member)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, members, strict=True))


@every_optimizer()
def test_tensors_without_entries_are_left_as_they_are(offered):
    empty = [nn.Parameter(torch.empty(shape)) for shape in ((5, 0), (0, 5), (0,))]
    weight = nn.Parameter(torch.ones(3, 2))
    optimizer = offered.make([*empty, weight], lr=0.1)
    for member in (*empty, weight):
        member.grad = torch.ones_like(member)
    optimizer.step()
    assert (weight < 1).all() and [tuple(member.shape) for member in empty] == [(5, 0), (0, 5), (0,)]


@every_optimizer()
def test_types_may_be_mixed_and_each_keeps_its_own(offered):
    types = (torch.float32, torch.float64, torch.bfloat16)
    members = [nn.Parameter(torch.ones(4, 3, dtype=kind)) for kind in types]
    optimizer = offered.make(members, lr=0.1)
    for _ in range(2):
        for member in members:
            member.grad = torch.ones_like(member)
        optimizer.step()
    assert tuple(member.dtype for member in members) == types and all((member < 1).all() for member in members)


@every_optimizer(lamb="timm counts the steps of a group, not of each parameter")
def test_a_late_gradient_steps_as_if_its_parameter_were_alone(offered):
    early, late, alone = (nn.Parameter(torch.full((4, 3), 2.0)) for _ in range(3))
    starts = [(0, offered.make([early, late], weight_decay=0.0)), (1, offered.make([alone], weight_decay=0.0))]
    for step, optimizer in starts:
        generator = torch.Generator().manual_seed(0)
        for now in range(step, 4):
            early.grad, gradient = torch.ones(4, 3), torch.randn(4, 3, generator=generator) if now else None
            (late if step == 0 else alone).grad = gradient
            optimizer.step()
    assert torch.allclose(late, alone, rtol=1e-5, atol=1e-6)


@every_optimizer()
def test_a_gradient_scaler_that_skips_the_first_step_leaves_no_trace(offered):
    torch.full((64, 64), 1e9)  # freed at once: uninitialised state may get this memory
    plain, scaled = (nn.Parameter(torch.ones(64, 64)) for _ in range(2))
    optimizers = [offered.make([member], lr=0.1) for member in (plain, scaled)]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(4):
        if step:
            plain.grad = torch.ones_like(plain)
            optimizers[0].step()
        scaled.grad = torch.full_like(scaled, scaler.scale(torch.tensor(1.0 if step else torch.inf)).item())
        scaler.unscale_(optimizers[1])
        scaler.step(optimizers[1])
        scaler.update()
    assert torch.equal(plain, scaled)


# --- groups and rates ---------------------------------------------------------------------------------------------


@every_optimizer()
def test_a_group_takes_its_own_options_and_one_may_come_later(offered):
    members = parameters()
    before = copy.deepcopy(members)
    optimizer = offered.make([{"params": members[:1], "lr": 0.0}, {"params": members[1:2]}], lr=0.1)
    optimizer.add_param_group({"params": members[2:], "lr": 0.2})
    set_grads(members, 0)
    optimizer.step()
    assert [torch.equal(a, b) for a, b in zip(before, members, strict=True)] == [True, False, False]


@every_optimizer()
def test_torch_s_schedulers_set_its_rate(offered):
    members = parameters()
    optimizer = offered.make(members, lr=0.1)
    schedulers = (StepLR(optimizer, step_size=2, gamma=0.5), ReduceLROnPlateau(optimizer, patience=100))
    for step in range(4):
        set_grads(members, step)
        optimizer.step()
        schedulers[0].step()
        schedulers[1].step(1.0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.025)


@every_optimizer()
def test_a_tensor_as_learning_rate_is_its_number_or_refused(offered):
    numbers, tensors = parameters(), parameters()
    first = offered.make(numbers, lr=0.125)
    try:
        second = offered.make(tensors, lr=torch.tensor(0.125))
    except ValueError as error:
        assert "capturable=True" in str(error)
        return
    for step in range(3):
        for members, optimizer in ((numbers, first), (tensors, second)):
            set_grads(members, step)
            optimizer.step()
    for a, b in zip(numbers, tensors, strict=True):  # Muon's own arithmetic is in bfloat16
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-3 if offered.name == "muon" else 1e-6)
