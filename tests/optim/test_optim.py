"""Parameter groups, optimizer and schedule, as the recipe says."""

import pytest
import timm
import timm.optim
import torch
from torch import nn

import models  # registers the models
import optim
from optim import OptimConfig, ScheduleConfig

ADAMW = OptimConfig(name="adamw")
COSINE = ScheduleConfig(name="cosine")


def schedule(cfg: ScheduleConfig, steps: int, per_epoch: int = 10, adamw: OptimConfig = ADAMW, batch: int = 1024):
    optimizer = optim.build_optimizer(adamw, nn.Linear(2, 2), batch)
    built = optim.build_schedule(cfg, adamw, optimizer, batch, steps, per_epoch)

    def rate(step: int) -> float:
        built.step_update(step)
        return optimizer.param_groups[0]["lr"]

    return rate


def test_groups_hold_each_parameter_once_with_the_recipe_s_decay():
    model = timm.create_model("lipsformer_swin_mini")
    groups = optim.param_groups(model, 0.05, 5e-4)
    names = [name for name, _ in model.named_parameters()]
    decay = {name: g["weight_decay"] for g in groups for name, _ in g["params"]}
    assert decay.keys() == set(names)
    assert sum(len(g["params"]) for g in groups) == len(names)
    for name, parameter in model.named_parameters():
        light = parameter.ndim == 1 or "relative_position_bias_table" in name
        assert decay[name] == (5e-4 if light else 0.05), name


def test_frozen_parameters_are_left_out():
    model = nn.Linear(2, 2)
    model.bias.requires_grad = False
    assert [len(g["params"]) for g in optim.param_groups(model, 0.1, 0.0)] == [1]


def test_adamw_is_torch_s_with_the_recipe_s_values():
    optimizer = optim.build_optimizer(ADAMW, nn.Linear(2, 2), 1024)
    assert isinstance(optimizer, torch.optim.AdamW)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["eps"]) == (1e-3, (0.9, 0.98), 1e-8)


@pytest.mark.parametrize(("lr", "batch", "peak"), [(None, 512, 5e-4), (None, 2048, 2e-3), (3e-3, 2048, 3e-3)])
def test_peak_scales_with_the_global_batch_unless_given(lr, batch, peak):
    assert optim.peak_lr(OptimConfig(name="adamw", lr=lr), batch) == pytest.approx(peak)


def test_cosine_starts_at_the_peak_and_ends_at_a_hundredth():
    rate = schedule(COSINE, 100)
    rates = [rate(step) for step in range(101)]
    assert rates[0] == 1e-3 and rates[100] == pytest.approx(1e-5)
    assert rates[50] == pytest.approx((1e-3 + 1e-5) / 2)
    assert rates == sorted(rates, reverse=True)


def test_the_rate_of_a_step_depends_on_its_number_alone():
    forward, jumping = schedule(COSINE, 100), schedule(COSINE, 100)
    rates = [forward(step) for step in range(100)]
    assert [jumping(step) for step in (70, 3, 99)] == [rates[70], rates[3], rates[99]]


def test_warmup_exists_and_lasts_as_long_as_said():
    rate = schedule(ScheduleConfig(name="cosine", warmup_epochs=2), 100)
    rates = [rate(step) for step in range(100)]
    assert rates[0] == 0 and rates[10] == pytest.approx(5e-4) and max(rates) == rates[20] == pytest.approx(1e-3)
    with pytest.raises(optim.OptimError, match=r"schedule.warmup_epochs=10 and .* are as long as the run"):
        schedule(ScheduleConfig(name="cosine", warmup_epochs=10), 100)


def test_cooldown_stays_at_the_smallest_rate():
    rate = schedule(ScheduleConfig(name="cosine", cooldown_epochs=2), 100)
    rates = [rate(step) for step in range(100)]
    assert rates[40] == pytest.approx((1e-3 + 1e-5) / 2)
    assert rates[79] > rates[80] and set(rates[80:]) == {1e-5}
    with pytest.raises(optim.OptimError, match=r"schedule.cooldown_epochs=8 are as long as the run"):
        schedule(ScheduleConfig(name="cosine", warmup_epochs=2, cooldown_epochs=8), 100)


def rates(name: str, steps: int = 100, **options: float) -> list[float]:
    rate = schedule(ScheduleConfig(name=name, **options), steps)
    return [rate(step) for step in range(steps)]


@pytest.mark.parametrize("name", optim.SCHEDULES)
def test_every_schedule_starts_at_its_peak_and_warms_up_only_when_asked(name):
    assert rates(name)[0] == 1e-3
    warm = rates(name, warmup_epochs=2)
    assert warm[0] == 0 and warm[10] == pytest.approx(5e-4) and warm[20] == pytest.approx(1e-3)
    assert max(warm) == pytest.approx(1e-3) and min(rates(name)) >= 1e-5


@pytest.mark.parametrize("name", optim.SCHEDULES)
def test_every_rate_depends_on_the_step_s_number_alone(name):
    jumping = schedule(ScheduleConfig(name=name, warmup_epochs=1), 100)
    forward = rates(name, warmup_epochs=1)
    assert [jumping(step) for step in (70, 3, 99)] == [forward[70], forward[3], forward[99]]


def test_linear_falls_by_the_same_at_each_step():
    found = rates("linear")
    assert found[50] == pytest.approx((1e-3 + 1e-5) / 2) and found[99] == pytest.approx(1e-5 + 0.99e-5)


def test_step_drops_by_its_factor():
    found = rates("step", step_epochs=4.0, step_factor=0.1)
    assert found[39] == 1e-3 and found[40] == found[79] == pytest.approx(1e-4) and found[80] == pytest.approx(1e-5)


def test_constant_is_constant():
    assert set(rates("constant")) == {1e-3}


def test_trapezoid_is_flat_and_then_descends():
    found = rates("trapezoid")
    assert set(found[:81]) == {1e-3} and found[90] == pytest.approx((1e-3 + 1e-5) / 2) and found[99] < 7e-5
    assert rates("trapezoid", decay_epochs=5.0)[75] == pytest.approx((1e-3 + 1e-5) / 2)
    with pytest.raises(optim.OptimError, match=r"schedule\.decay_epochs=11 is longer than the run without warm-up"):
        rates("trapezoid", decay_epochs=11.0)


def test_a_trapezoid_descends_in_the_last_fifth_between_warmup_and_cooldown():
    found = rates("trapezoid", warmup_epochs=4.0, cooldown_epochs=1.0)  # 40 + 50 + 10 steps
    assert set(found[40:81]) == {1e-3} and found[81] < 1e-3 and found[90] == 1e-5


def test_a_lag_delays_the_epochs_in_which_the_rate_changes():
    found = rates("cosine", lag_epochs=0.5, t_in_epochs=True)
    changes = [step for step in range(1, 100) if found[step] != found[step - 1]]
    assert changes == list(range(15, 100, 10))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sgd", {"momentum": 0.9, "nesterov": True, "dampening": 0}),
        ("lamb", {"decoupled_decay": False, "max_grad_norm": None}),
        ("radam", {"decoupled_weight_decay": True}),
        ("muon", {"algo": "muon", "nesterov": True, "momentum": 0.9}),
        ("adamuon", {"algo": "adamuon", "nesterov": False}),
        ("nadamuon", {"algo": "adamuon", "nesterov": True}),
    ],
)
def test_an_optimizer_is_the_form_that_its_paper_or_file_says(name, expected):
    (group, _) = optim.build_optimizer(OptimConfig(name=name, lr=1e-2), nn.Linear(2, 2), 512).param_groups
    assert {key: group[key] for key in expected} == expected


def test_lamb_takes_the_steps_of_apex_s_fused_lamb():
    """DeiT III's released code trains with it: the decay is a part of the update, before its norm is taken."""
    torch.manual_seed(0)
    layer, lr, decay, betas, eps = nn.Linear(8, 8).double(), 4e-3, 0.05, (0.9, 0.999), 1e-8
    cfg = OptimConfig(name="lamb", lr=lr, weight_decay=decay, light_decay=0.0, betas=list(betas), eps=eps)
    optimizer = optim.build_optimizer(cfg, layer, 2048)
    expected = {name: value.detach().clone() for name, value in layer.named_parameters()}
    first = {name: torch.zeros_like(value) for name, value in expected.items()}
    second = {name: torch.zeros_like(value) for name, value in expected.items()}
    for step in range(1, 21):
        for name, parameter in layer.named_parameters():
            parameter.grad = gradient = torch.randn_like(parameter)
            first[name].lerp_(gradient, 1 - betas[0])
            second[name].lerp_(gradient**2, 1 - betas[1])
            update = first[name] / (1 - betas[0] ** step) / ((second[name] / (1 - betas[1] ** step)).sqrt() + eps)
            if name == "weight":  # a bias has no decay, and then no trust ratio
                update += decay * expected[name]
                update *= expected[name].norm() / update.norm()
            expected[name] -= lr * update
        optimizer.step()
    torch.testing.assert_close(dict(layer.named_parameters()), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", ["muon", "adamuon", "nadamuon"])
def test_muon_takes_the_steps_that_its_file_in_conf_names(name):
    torch.manual_seed(0)
    layer, lr, betas, eps = nn.Linear(32, 16).double(), 1e-2, (0.9, 0.98), 1e-7
    cfg = OptimConfig(name=name, lr=lr, weight_decay=0.0, light_decay=0.0, betas=list(betas), momentum=0.95)
    optimizer = optim.build_optimizer(cfg, layer, 1024)
    bias, first, second = layer.bias.detach().clone(), torch.zeros(16).double(), torch.zeros(16).double()
    for step in range(1, 11):
        before = layer.weight.detach().clone()
        for parameter in layer.parameters():
            parameter.grad = torch.randn_like(parameter)
        assert layer.bias.grad is not None
        first.lerp_(layer.bias.grad, 1 - betas[0])
        second.lerp_(layer.bias.grad**2, 1 - betas[1])
        # NAdamW looks one gradient ahead.
        mean = first if name == "adamuon" else first.lerp(layer.bias.grad, 1 - betas[0])
        bias -= lr * mean / (1 - betas[0] ** step) / ((second / (1 - betas[1] ** step)).sqrt() + eps)
        optimizer.step()
        torch.testing.assert_close(layer.bias.detach(), bias, rtol=1e-10, atol=0)
        moved = (layer.weight.detach() - before) / lr
        if name == "muon":  # all singular values are near 1, times 0.2 √32
            assert torch.linalg.svdvals(moved / (0.2 * 32**0.5)).sub(1).abs().max() < 0.15
        else:  # the mean square of the entries is that of AdamW
            assert moved.square().mean().sqrt().item() == pytest.approx(0.2, rel=1e-4)


def test_inverse_sqrt_falls_with_the_root():
    found = rates("inverse_sqrt", timescale_epochs=2.0)
    assert found[20] == pytest.approx(1e-3 / 2**0.5) and found[60] == pytest.approx(1e-3 / 2)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("adamw", torch.optim.AdamW),
        ("adamw2", optim.AdamW2),
        ("sgd", torch.optim.SGD),
        ("lion", timm.optim.Lion),
        ("lamb", timm.optim.Lamb),
        ("radam", torch.optim.RAdam),
        ("muon", timm.optim.Muon),
        ("adamuon", timm.optim.Muon),
        ("nadamuon", timm.optim.Muon),
    ],
)
def test_every_optimizer_has_the_paper_s_groups_and_learns(name, kind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    cfg = OptimConfig(name=name, lr=1e-2)
    optimizer = optim.build_optimizer(cfg, model, 512)
    assert isinstance(optimizer, kind)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 5e-4]
    assert optimizer.param_groups[0]["param_names"] == ["0.weight", "2.weight"]
    inputs = torch.randn(32, 4)
    targets = (inputs.sum(dim=1) > 0).long()
    losses = []
    for _ in range(40):
        loss = nn.functional.cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1


def test_an_optimizer_s_own_complaint_becomes_one_line():
    with pytest.raises(optim.OptimError, match="optim=adamw2: power_iterations=0 must be a whole number of 1 or more"):
        optim.build_optimizer(OptimConfig(name="adamw2", power_iterations=0), nn.Linear(2, 2), 1)


def test_unknown_names_are_refused():
    with pytest.raises(optim.OptimError, match="no optimizer 'adam': choose optim=adamw, adamw2, sgd"):
        optim.build_optimizer(OptimConfig(name="adam"), nn.Linear(2, 2), 1)
    with pytest.raises(optim.OptimError, match="no schedule 'line': choose schedule=cosine, linear"):
        schedule(ScheduleConfig(name="line"), 10)


def test_the_paper_s_recipe():
    """LipsFormer-Swin: peak 1e-3 at batch 1024, no warm-up."""
    assert models.FAMILIES
    assert COSINE.warmup_epochs == 0 and optim.peak_lr(ADAMW, 1024) == 1e-3
