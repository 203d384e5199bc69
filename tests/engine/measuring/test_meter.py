"""The meter: what a reading says about steps and processes."""

import math
from types import SimpleNamespace

import pytest
import torch

from engine.measuring.meter import Meter, StepNumbers
from engine.processes.distributed import World
from engine.step import StepOutcome


def meter_of(amp: str = "off", other: list[float] | None = None) -> Meter:
    """A meter of one process; with ``other``, of two, where the other process sends this row."""
    world = World(0, 1, 0, 1)
    if other is not None:
        world = SimpleNamespace(all_gather=lambda mine: torch.stack([mine, torch.tensor(other, dtype=mine.dtype)]))  # type: ignore[assignment]
    runtime = SimpleNamespace(world=world, device=torch.device("cpu"), amp=amp)
    return Meter(runtime, batch_size=4)  # type: ignore[arg-type]


def add(meter: Meter, first: int, *pairs: tuple[float, float]) -> None:
    for step, (loss, grad_norm) in enumerate(pairs, start=first):
        outcome = StepOutcome(step, torch.tensor(loss), torch.tensor(grad_norm), 0.1, None)  # type: ignore[arg-type]
        meter.add(outcome, waited=0.5)


def test_a_reading_has_the_steps_since_the_last_one():
    meter = meter_of()
    add(meter, 1, (2.0, 1.0), (4.0, 3.0))
    reading = meter.read([False, True])
    assert reading.steps == [StepNumbers(1, 2.0, 1.0, 0.1), StepNumbers(2, 4.0, 3.0, 0.1)]
    assert (reading.loss, reading.grad_norm, reading.bad_step, reading.votes) == (3.0, 2.0, None, [False, True])
    add(meter, 3, (5.0, 7.0))
    reading = meter.read([])
    assert reading.steps == [StepNumbers(3, 5.0, 7.0, 0.1)]
    assert reading.data_wait * 4 / reading.images_per_second == pytest.approx(0.5)  # seconds, of one step


def test_losses_of_processes_add_up_and_any_vote_counts():
    # The other process waited 9 s, for 9 s, votes no and yes, and had two steps of loss 1 and norm 8.
    meter = meter_of(other=[9.0, 9.0, 0.0, 1.0, 1.0, 8.0, 1.0, 8.0])
    add(meter, 1, (2.0, 8.0), (4.0, 8.0))
    reading = meter.read([False, False])
    assert [(s.loss, s.grad_norm) for s in reading.steps] == [(3.0, 8.0), (5.0, 8.0)]
    assert (reading.loss, reading.grad_norm, reading.votes) == (4.0, 8.0, [False, True])
    assert reading.data_wait * 8 / reading.images_per_second == pytest.approx(9)  # of the one that waited longest


def test_a_process_can_read_alone():
    """It has a quarter of each batch, so its part of the mean loss is a quarter of the loss of its images."""
    meter = meter_of(other=[])
    add(meter, 1, (0.5, 8.0), (1.0, 8.0))
    reading = meter.read_alone(share=0.25)
    assert [(s.loss, s.grad_norm) for s in reading.steps] == [(2.0, 8.0), (4.0, 8.0)]
    assert (reading.loss, reading.votes, meter.unread) == (3.0, [], [])


@pytest.mark.parametrize("bad", [(math.nan, 1.0), (1.0, math.inf)])
def test_the_first_step_that_is_not_finite_is_told_and_remembered(bad):
    meter = meter_of()
    add(meter, 1, (2.0, 1.0), (2.0, 1.0))
    assert meter.is_sound()
    add(meter, 3, bad, bad)
    assert not meter.is_sound()
    assert meter.read([]).bad_step == 3 and not meter.is_sound()


def test_in_fp16_an_overflowing_gradient_is_normal():
    meter = meter_of("fp16")
    add(meter, 1, (2.0, math.inf), (2.0, 3.0))
    assert meter.is_sound()
    reading = meter.read([])
    assert (reading.bad_step, reading.grad_norm) == (None, 1.5)
    add(meter, 3, (math.nan, 1.0))
    assert not meter.is_sound()
