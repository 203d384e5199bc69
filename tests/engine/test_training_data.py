"""What counts as waiting for a batch."""

from collections.abc import Generator
from itertools import count
from time import sleep
from typing import Any

import pytest
import torch

from engine.training_data import TimedBatches

BUSY = 2 * 10**8  # a GPU needs about a tenth of a second for so many cycles


def test_the_time_between_asking_and_getting_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    batches: Generator[Any, None, None] = (number for number in range(3))
    seconds = count()
    monkeypatch.setattr("engine.training_data.perf_counter", lambda: next(seconds))
    timed = TimedBatches(batches, torch.device("cpu"))
    assert list(timed.take(2)) == [0, 1]
    assert [timed.pop_waited(), timed.pop_waited()] == [2, 0]
    assert list(timed) == [2]
    assert timed.pop_waited() == 2  # to find out that there are no more is a wait, too


@pytest.mark.gpu
def test_a_gpu_waits_only_while_it_has_nothing_to_compute() -> None:
    elsewhere = torch.cuda.Stream()

    def batches() -> Generator[Any, None, None]:
        sleep(0.05)  # the GPU has no work
        yield 0
        sleep(0.05)  # the GPU has work for a tenth of a second
        yield 1
        torch.cuda.current_stream().wait_stream(elsewhere)  # the GPU waits for a tenth of a second, the host does not
        yield 2

    timed = TimedBatches(batches(), torch.device("cuda"))
    torch.cuda.synchronize()
    next(timed)
    torch.cuda.synchronize()
    assert timed.pop_waited() >= 0.05
    torch.cuda._sleep(BUSY)
    next(timed)
    torch.cuda.synchronize()
    assert timed.pop_waited() < 0.02
    with torch.cuda.stream(elsewhere):
        torch.cuda._sleep(BUSY)
    next(timed)
    assert timed.pop_waited() == 0  # the GPU has not got there yet
    torch.cuda.synchronize()
    assert timed.pop_waited() >= 0.05
