"""Learning rates of the papers' experiments against timm's scheduler, called as in the released training loops."""

import math

import pytest
from timm.scheduler import CosineLRScheduler, StepLRScheduler
from torch import nn

import optim
from optim import ScheduleConfig
from tests.runs import settings

STEPS = 7  # in an epoch


def scheduler(cfg: ScheduleConfig, epochs: int, low: float = 1e-5):
    """A function from a step to its rate, for the schedule of ``cfg`` with a peak of 1e-3."""
    optimizer = optim.build_optimizer(optim.OptimConfig(name="adamw", lr=1e-3), nn.Linear(2, 2), 512)
    adamw = optim.OptimConfig(name="adamw", min_lr=low)
    built = optim.build_schedule(cfg, adamw, optimizer, 512, epochs * STEPS, STEPS)
    return lambda step: built.rate(step, 1e-3)


def rates_of(experiment: str) -> list[float]:
    """The rate of every step of an experiment, if an epoch had ``STEPS`` steps."""
    cfg = settings(f"experiment={experiment}", "data=fashion_mnist", "logger=none", "device=cpu")
    optimizer = optim.build_optimizer(cfg.optim, nn.Linear(2, 2), cfg.batch_size)
    schedule = optim.build_schedule(cfg.schedule, cfg.optim, optimizer, cfg.batch_size, cfg.epochs * STEPS, STEPS)
    rates = []
    for step in range(cfg.epochs * STEPS):
        schedule.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def timm_cosine(peak: float, **options: float):
    """timm's own scheduler, and the optimizer whose rate it sets."""
    optimizer = optim.build_optimizer(optim.OptimConfig(name="adamw", lr=peak), nn.Linear(2, 2), 512)
    return CosineLRScheduler(optimizer, lr_min=1e-5, warmup_lr_init=1e-6, **options), optimizer.param_groups[0]


def test_deit_s_rate_is_that_of_its_released_loop():
    """The loop calls ``lr_scheduler.step(epoch)`` at the end of each epoch, with the number of that epoch."""
    theirs, group = timm_cosine(1e-3, t_initial=300, warmup_t=5)
    expected = []
    for epoch in range(300):
        expected += [group["lr"]] * STEPS
        theirs.step(epoch)
    assert rates_of("deit_small_paper") == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("size", "peak"), [("tiny", 2e-3), ("small", 2e-3), ("base", 1e-3)])
def test_cswin_s_rates_are_those_of_its_released_loop(size, peak):
    """The loop calls ``lr_scheduler.step(epoch + 1)`` at the end of each epoch; ten epochs are added at the end."""
    theirs, group = timm_cosine(peak, t_initial=300, warmup_t=20)
    expected = []
    for epoch in range(310):
        expected += [group["lr"]] * STEPS
        theirs.step(epoch + 1)
    assert rates_of(f"cswin_{size}_paper") == pytest.approx(expected, rel=1e-12)


def test_swin_s_rate_is_that_of_its_released_loop():
    """The loop calls ``step_update`` at each step, but with the previous step's number; this delay is left out here."""
    theirs, group = timm_cosine(1e-3, t_initial=300 * STEPS, warmup_t=20 * STEPS, t_in_epochs=False)
    expected = []
    for step in range(300 * STEPS):
        theirs.step_update(step)
        expected.append(group["lr"])
    assert rates_of("swin_tiny_paper") == pytest.approx(expected, rel=1e-12)


def test_drops_after_a_part_of_an_epoch_come_when_timm_s_do():
    """EfficientNet's schedule in timm is --sched step --decay-epochs 2.4 --decay-rate .97."""
    optimizer = optim.build_optimizer(optim.OptimConfig(name="adamw", lr=1e-3), nn.Linear(2, 2), 512)
    theirs = StepLRScheduler(optimizer, decay_t=2.4, decay_rate=0.97)
    found = scheduler(ScheduleConfig(name="step", step_epochs=2.4, step_factor=0.97, t_in_epochs=True), 100, low=0)
    for epoch in range(100):
        theirs.step(epoch)
        rate = optimizer.param_groups[0]["lr"]
        assert [found(epoch * STEPS + step) for step in range(STEPS)] == pytest.approx([rate] * STEPS, rel=1e-12), epoch


@pytest.mark.parametrize("name", optim.SCHEDULES)
def test_a_prefix_moves_the_schedule_and_no_prefix_covers_its_beginning(name):
    options = {"step_epochs": 4.0, "timescale_epochs": 2.0, "cooldown_epochs": 1}
    bare = scheduler(ScheduleConfig(name=name, decay_epochs=4, **options), 18)
    after = scheduler(ScheduleConfig(name=name, decay_epochs=4, warmup_epochs=2, **options), 20)
    within = scheduler(ScheduleConfig(name=name, decay_epochs=4, warmup_epochs=2, warmup_prefix=False, **options), 18)
    for step in range(18 * STEPS):
        assert after(step + 2 * STEPS) == bare(step)
        if step >= 2 * STEPS:
            assert within(step) == bare(step)
        else:
            assert within(step) == pytest.approx(1e-3 * step / (2 * STEPS))
    assert (bare(17 * STEPS) == 1e-5) == (name != "constant"), "the first step of the cool-down"


@pytest.mark.parametrize("name", optim.SCHEDULES)
def test_in_epochs_the_rate_is_that_of_the_epoch_s_first_step(name):
    options = {"step_epochs": 2.0, "warmup_epochs": 2, "cooldown_epochs": 1}
    smooth = scheduler(ScheduleConfig(name=name, **options), 12)
    stairs = scheduler(ScheduleConfig(name=name, t_in_epochs=True, **options), 12)
    late = scheduler(ScheduleConfig(name=name, t_in_epochs=True, lag_epochs=1, **options), 12)
    for step in range(12 * STEPS):
        assert stairs(step) == smooth(step // STEPS * STEPS)
        assert late(step) == stairs(max(step - STEPS, 0))


def test_the_default_is_a_prefix_and_a_rate_for_each_step():
    rate = scheduler(ScheduleConfig(name="cosine", warmup_epochs=2), 12)
    length = 10 * STEPS
    for step in range(2 * STEPS, 12 * STEPS):
        fraction = 0.5 * (1 + math.cos(math.pi * (step - 2 * STEPS) / length))
        assert rate(step) == 1e-5 + (1e-3 - 1e-5) * fraction  # to the last bit
    trapezoid = scheduler(ScheduleConfig(name="trapezoid", warmup_epochs=2), 12)
    at_peak = [step for step in range(12 * STEPS) if trapezoid(step) == 1e-3]
    assert at_peak == [*range(2 * STEPS, 10 * STEPS + 1)], "the decay is a fifth of the schedule"


def test_a_run_that_is_all_warm_up_is_refused_without_a_prefix_too():
    with pytest.raises(optim.OptimError, match=r"schedule.warmup_epochs=12 and .* are as long as the run"):
        scheduler(ScheduleConfig(name="cosine", warmup_epochs=12, warmup_prefix=False), 12)


@pytest.mark.parametrize("name", ["cosine", "step"])
def test_a_rate_that_would_rise_to_its_smallest_is_refused(name):
    """A user who fine-tunes may set a small rate and forget that the recipe's smallest rate stays the same."""

    def rate(min_lr: float | None = None, **schedule: float) -> float:
        chosen = optim.OptimConfig(name="adamw", lr=1e-9, min_lr=min_lr)
        optimizer = optim.build_optimizer(chosen, nn.Linear(2, 2), 512)
        cfg = ScheduleConfig(name=name, **schedule)
        return optim.build_schedule(cfg, chosen, optimizer, 512, 100, 10).rate(50, 1e-9)

    with pytest.raises(optim.OptimError, match=r"above the peak of 1e-09, .*: add optim\.min_lr=1e-11"):
        rate()
    assert rate(min_lr=1e-9) == 1e-9
    with pytest.raises(optim.OptimError, match="warmup_lr=1e-06 is above the peak"):
        rate(min_lr=1e-9, warmup_epochs=2, warmup_lr=1e-6)
