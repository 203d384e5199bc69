"""Work that is spread over processes, some of which are killed, or no longer wanted."""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from data.errors import DataError
from data.prepare.jobs import run_jobs

KILLED = partial(os._exit, 9)


def when_the_process_is_gone() -> Iterator[Callable[[], object]]:
    yield KILLED
    while multiprocessing.active_children():
        time.sleep(0.01)
    yield partial(abs, -1)


@pytest.mark.parametrize("jobs", [[KILLED], when_the_process_is_gone()], ids=["running", "getting_jobs"])
def test_a_process_that_was_killed_is_one_line(jobs) -> None:
    with pytest.raises(DataError, match=r"^a process was killed, perhaps because memory ran out"):
        list(run_jobs(jobs, workers=1))


def test_an_interrupt_while_a_result_is_used_ends_the_jobs_at_once() -> None:
    """Otherwise the command would end only after them."""
    with pytest.raises(KeyboardInterrupt):
        for _ in run_jobs([partial(abs, -1), partial(time.sleep, 600)], workers=2):
            processes = multiprocessing.active_children()
            raise KeyboardInterrupt
    for process in processes:
        process.join(100)
    alive = multiprocessing.active_children()
    for process in alive:
        process.kill()
    assert not alive
