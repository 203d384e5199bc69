"""AdamW² as an ordinary optimizer: groups, states, closures, errors, copies and metrics."""

import copy
import io

import pytest
import timm
import torch
from torch import Tensor, nn

import models  # noqa: F401  (registers the models)
from optim import AdamW2, param_groups
from tests.twins import same, set_gradients, small_model


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
    assert again.metrics() == optimizer.metrics()
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
        if step == 1:  # a copy that shared tensors would have moved too
            assert not same(model, twin)
        its_optimizer.step()
    assert same(model, twin) and optimizer.metrics() == its_optimizer.metrics()


def test_parameters_without_gradients_wait_and_go_on_as_if_alone():
    """Two of five matrices have no gradient in some steps. Each moves as it would in an optimizer of its own."""
    torch.manual_seed(0)
    start = [torch.randn(6, 8) for _ in range(5)]
    together, apart = ([nn.Parameter(w.clone()) for w in start] for _ in range(2))
    how = {"lr": 1e-2, "tau": 0.01, "power_iterations": 40}  # enough for exact σ₁
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
    with pytest.raises(ValueError, match="state belongs to another optimizer: AdamW2"):
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
        ({"lr": torch.tensor([0.1, 0.1])}, "single number"),
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
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("splits", "message"),
    [(3, "does not divide the 4 rows"), (0, "1 or more"), (-2, "1 or more"), (2.0, "whole number")],
)
def test_splits_that_do_not_divide_are_refused(splits, message):
    with pytest.raises(ValueError, match=f"splits={splits} .*{message}"):
        AdamW2([{"params": [nn.Parameter(torch.ones(4, 2))], "splits": splits}])


def test_a_cleared_state_has_no_metrics_until_the_next_step():
    model = small_model()
    optimizer = AdamW2(param_groups(model), 1e-2, tau=0.01)
    set_gradients(model, step=0)
    optimizer.step()
    optimizer.state.clear()
    assert optimizer.metrics() == {}
    optimizer.step()
    assert optimizer.metrics()["capped"] > 0


def test_a_gradient_that_is_not_finite_raises_nothing():
    """The engine finds it without waiting for a GPU, and names the step. torch's AdamW raises nothing either."""
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
    assert torch.equal(layer.weight, twin.weight) and late.metrics() == early.metrics()


def test_closures_compute_the_loss_and_its_gradient():
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = AdamW2([weight], lr=0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 4 and (weight < 1).all()


def test_random_numbers_are_left_alone():
    before = torch.get_rng_state()
    model = nn.Linear(4, 4)
    torch.set_rng_state(before)
    optimizer = AdamW2(model.parameters())
    set_gradients(model, step=0)
    optimizer.step()
    assert torch.equal(before, torch.get_rng_state())


def test_metrics_say_what_the_cap_did_and_to_which_matrix():
    weights = {"a": torch.eye(3), "b": 100 * torch.eye(3), "qkv": torch.eye(6)}
    members = {name: nn.Parameter(weight) for name, weight in weights.items()}
    groups = [
        {"params": [(name, members[name]) for name in ("a", "b")]},
        {"params": [("qkv", members["qkv"])], "splits": 2, "tau": 0.4},
    ]
    optimizer = AdamW2(groups, 0.1, tau=0.2)
    assert optimizer.metrics() == {}
    for member in members.values():
        member.grad = torch.ones_like(member)
    optimizer.step()
    # σ₁ of a matrix of ones is the square root of its number of entries. σ₁ of each half of qkv's weight is 1.
    ratios = [0.3, 0.003, 0.1 * 18**0.5, 0.1 * 18**0.5]
    expected = {"capped": 0.75, "lr_factor_min": 0.2 / 0.3, "lr_factor_median": 0.2 / 0.3}
    expected["lr_factor_median"] = sorted([0.2 / 0.3, 1, 0.4 / ratios[2], 0.4 / ratios[3]])[1]
    expected |= {"step_ratio_median": sum(sorted(ratios)[1:3]) / 2, "step_ratio_max": ratios[2]}
    found = optimizer.metrics()
    assert found.pop("step_ratio_max_of") == "qkv"
    assert 0.9 * ratios[2] <= found.pop("step_ratio_p99") <= ratios[2] * 1.0001
    assert found == pytest.approx(expected, rel=1e-4)
    assert AdamW2([nn.Parameter(torch.ones(3))]).metrics() == {}


def test_metrics_have_a_number_where_a_matrix_is_zero_and_the_right_name_after_a_fused_one():
    members = {"qkv": 100 * torch.eye(6), "zero": torch.zeros(3, 3), "a": torch.eye(3)}
    groups = [
        {"params": [(name, nn.Parameter(weight))], "splits": 2 if name == "qkv" else 1}
        for name, weight in members.items()
    ]
    optimizer = AdamW2(groups, 0.1, tau=0.2)
    for group in optimizer.param_groups:
        for member in group["params"]:
            member.grad = torch.ones_like(member)
    optimizer.step()
    found = optimizer.metrics()
    assert (found["step_ratio_max_of"], found["capped"]) == ("a", 0.25)
    assert (found["step_ratio_max"], found["lr_factor_min"]) == pytest.approx((0.3, 0.2 / 0.3), rel=1e-4)
