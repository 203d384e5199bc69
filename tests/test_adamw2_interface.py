"""AdamW² as an ordinary optimizer: groups, states, closures, errors, copies, devices' numbers and graphs."""

import copy
import io

import pytest
import timm
import torch
from torch import Tensor, nn

import models  # noqa: F401  (registers the models)
from optim import AdamW2, param_groups
from tests.twins import same, set_gradients, small_model, step_alike


def test_groups_of_a_model_tell_matrices_from_tables():
    groups = param_groups(timm.create_model("lipsformer_swin_mini"))
    kind = {name: (group["cap"], group["splits"]) for group in groups for name, _ in group["params"]}
    assert kind["stages.0.0.attn.branch.qkv.weight"] == (True, 3)
    assert kind["stages.0.0.attn.branch.proj.weight"] == kind["head.weight"] == (True, 1)
    assert not any(cap for name, (cap, _) in kind.items() if "bias" in name or "norm" in name)
    vit = {n: g["cap"] for g in param_groups(timm.create_model("deit_small_patch16_224")) for n, _ in g["params"]}
    assert not vit["pos_embed"] and not vit["cls_token"] and vit["patch_embed.proj.weight"]
    assert not param_groups(nn.Embedding(3, 4))[0]["cap"]


def test_a_saved_state_goes_on_bit_for_bit():
    torch.manual_seed(0)
    whole = small_model()
    optimizer = AdamW2(param_groups(whole), 1e-2, tau=0.01)
    for step in range(4):
        set_gradients(whole, step=step)
        optimizer.step()
    file = io.BytesIO()
    torch.save((whole.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    resumed = small_model()
    again = AdamW2(param_groups(resumed), 1e-2, tau=0.01)
    resumed.load_state_dict(weights)
    again.load_state_dict(state)
    assert again.cap_report() == optimizer.cap_report()
    for step in range(4, 8):
        set_gradients(whole, resumed, step=step)
        optimizer.step()
        again.step()
    assert same(whole, resumed)


def test_a_copy_goes_on_by_itself():
    torch.manual_seed(0)
    model = small_model()
    optimizer = AdamW2(param_groups(model), 1e-2, tau=0.01)
    set_gradients(model, step=0)
    optimizer.step()
    twin, its_optimizer = copy.deepcopy((model, optimizer))
    for step in range(1, 4):
        set_gradients(model, twin, step=step)
        optimizer.step()
        if step == 1:  # a copy that shared anything would move with it
            assert not same(model, twin)
        its_optimizer.step()
    assert same(model, twin) and optimizer.cap_report() == its_optimizer.cap_report()


@pytest.mark.parametrize("fused", [False, True])
def test_parameters_without_gradients_wait_and_go_on_as_if_alone(fused):
    """Of five matrices one has no gradient in some steps; each goes the way it would go in an optimizer of its own."""
    torch.manual_seed(0)
    start = [torch.randn(6, 8) for _ in range(5)]
    together, apart = ([nn.Parameter(w.clone()) for w in start] for _ in range(2))
    how = {"lr": 1e-2, "tau": 0.01, "fused": fused, "power_iterations": 100}  # till nothing is left to estimate
    optimizers = [AdamW2(together, **how)]
    optimizers += [AdamW2([weight], **how) for weight in apart]
    for step in range(9):
        for i, (a, b) in enumerate(zip(together, apart, strict=True)):
            gradient = torch.randn(6, 8, generator=torch.Generator().manual_seed(10 * step + i))
            a.grad = b.grad = None if step % 3 == 1 and i in (0, 3) else gradient
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(together, apart, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)
        assert optimizers[0].state[a]["step"] == (6 if a is together[0] or a is together[3] else 9)


def test_another_optimizer_s_state_is_refused():
    model = small_model()
    state = torch.optim.AdamW(param_groups(model)).state_dict()
    with pytest.raises(ValueError, match="state is of another optimizer than AdamW2"):
        AdamW2(param_groups(model)).load_state_dict(state | {"param_groups": [{"params": []}]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr=-1.0"),
        ({"betas": (0.9, 1.0)}, "betas="),
        ({"tau": 0.0}, "tau=0.0"),
        ({"tau": float("nan")}, "tau=nan"),
        ({"power_iterations": 0}, "power_iterations=0"),
        ({"eps": -1e-8}, "eps="),
        ({"weight_decay": -0.1}, "weight_decay="),
        ({"lr": torch.tensor(0.1)}, "capturable"),
        ({"lr": torch.tensor([0.1, 0.1]), "capturable": True}, "single number"),
        ({"betas": (torch.tensor(0.9), torch.tensor(0.99))}, "betas="),
        ({"betas": (0.9,)}, "betas="),
        ({"power_iterations": 1.5}, "power_iterations=1.5"),
    ],
)
def test_numbers_out_of_range_are_refused_of_the_optimizer_and_of_a_group(options, message):
    with pytest.raises(ValueError, match=message):
        AdamW2([nn.Parameter(torch.ones(2, 2))], **options)
    optimizer = AdamW2([nn.Parameter(torch.ones(2, 2))])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2, 2))], **options})
    assert len(optimizer.param_groups) == len(optimizer.state) == 1


@pytest.mark.parametrize(
    ("splits", "message"),
    [(3, "does not divide the 4 rows"), (0, "1 or more"), (-2, "1 or more"), (2.0, "whole number")],
)
def test_splits_that_do_not_divide_are_refused(splits, message):
    with pytest.raises(ValueError, match=f"splits={splits} .*{message}"):
        AdamW2([{"params": [nn.Parameter(torch.ones(4, 2))], "splits": splits}])


def test_a_cleared_state_is_reported_as_none_until_the_next_step():
    model = small_model()
    optimizer = AdamW2(param_groups(model), 1e-2, tau=0.01)
    set_gradients(model, step=0)
    optimizer.step()
    optimizer.state.clear()
    assert optimizer.cap_report() is None
    optimizer.step()
    report = optimizer.cap_report()
    assert report is not None and report.share > 0


def test_a_gradient_that_is_not_finite_raises_nothing():
    """The engine finds it without waiting for a GPU, and names the step: torch's AdamW says nothing either."""
    weights = [nn.Parameter(torch.randn(8, 9)) for _ in range(2)]
    optimizer = AdamW2(weights, lr=0.1)
    for _ in range(3):
        for weight in weights:
            weight.grad = torch.randn(8, 9)
        weights[0].grad[1, 2] = float("nan")
        optimizer.step()
    assert weights[0].isnan().any() and weights[1].isfinite().all()


def test_parameters_may_get_their_values_after_the_optimizer_was_made():
    layer, twin = nn.Linear(6, 5, device="meta"), nn.Linear(6, 5)
    late, early = AdamW2(layer.parameters(), 0.1), AdamW2(twin.parameters(), 0.1)
    torch.utils.swap_tensors(layer.weight, nn.Parameter(twin.weight.detach().clone()))
    torch.utils.swap_tensors(layer.bias, nn.Parameter(twin.bias.detach().clone()))
    for module, optimizer in ((layer, late), (twin, early)):
        module(torch.ones(2, 6)).square().sum().backward()
        optimizer.step()
    assert torch.equal(layer.weight, twin.weight) and late.cap_report() == early.cap_report()


def test_closures_compute_the_loss_and_its_gradient():
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = AdamW2([weight], lr=0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 4 and (weight < 1).all()


@pytest.mark.parametrize("fused", [False, True])
def test_threads_share_the_matrices_and_change_no_bit(fused, set_threads):
    torch.manual_seed(0)
    start = [torch.randn(300, 700), torch.randn(301, 300), torch.randn(700), *torch.randn(4, 60, 50)]
    ends = []
    for threads in (1, 3):
        set_threads(threads)
        weights = [nn.Parameter(w.clone()) for w in start]
        optimizer = AdamW2(weights, 1e-2, tau=0.01, fused=fused)
        for step in range(3):
            generator = torch.Generator().manual_seed(step)
            for weight in weights:
                weight.grad = torch.randn(weight.shape, generator=generator)
            optimizer.step()
        assert torch.get_num_threads() == threads
        ends.append(weights)
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_an_error_in_a_thread_arrives(set_threads):
    weights = [nn.Parameter(torch.ones(2, n)) for n in (2, 3, 4)]
    optimizer = AdamW2(weights)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    weights[1].grad.data = torch.ones(2, 3).double()
    set_threads(2)
    with pytest.raises(RuntimeError):
        optimizer.step()


def test_random_numbers_are_left_alone():
    before = torch.get_rng_state()
    model = nn.Linear(4, 4)
    torch.set_rng_state(before)
    optimizer = AdamW2(model.parameters())
    set_gradients(model, step=0)
    optimizer.step()
    assert torch.equal(before, torch.get_rng_state())


def test_capturable_keeps_its_numbers_on_the_device_and_agrees():
    ours = small_model()
    theirs = copy.deepcopy(ours)
    a = AdamW2(param_groups(ours), torch.tensor(1e-2), tau=0.01, power_iterations=30, capturable=True)
    b = AdamW2(param_groups(theirs), 1e-2, tau=0.01, power_iterations=30)
    step_alike(5, (ours, a), (theirs, b))
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_compiled_step_agrees():
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3))
    theirs = copy.deepcopy(ours)
    a, b = (AdamW2(m.parameters(), torch.tensor(1e-2), tau=0.01, capturable=True) for m in (ours, theirs))
    compiled = torch.compile(a.step)
    for step in range(4):
        set_gradients(ours, theirs, step=step)
        compiled()
        b.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-5, atol=1e-6)
