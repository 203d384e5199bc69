"""Processes whole images in parallel threads; torch alone would split the pixels of each image over its threads."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier
from typing import TypeVar

import torch

T = TypeVar("T")


def single_torch_threads(count: int) -> ThreadPoolExecutor:
    """A pool of threads in which torch starts no further threads.

    Short operations do not gain from torch's threads: when the CPU is busy, most of the time is spent waiting for the
    slowest thread.
    """
    own = torch.get_num_threads()
    all_there = Barrier(count)  # all threads start now, and set their own number before the number here is set again
    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
    for thread in [pool.submit(all_there.wait) for _ in range(count)]:
        thread.result()
    torch.set_num_threads(own)  # the pool's calls also changed the number for threads that start later: set it back
    return pool


def begun_ahead(tasks: Iterable[T]) -> Iterator[T]:
    """The tasks in their order. While the caller waits for one and uses its result, the next one has begun already.

    Args:
        tasks: an iterable that begins a task when it is asked for it.
    """
    before: list[T] = []
    for task in tasks:
        yield from before
        before = [task]
    yield from before


def in_parallel(work: Callable[[T], object], items: Sequence[T]) -> None:
    """Do the work on every item, in as many threads as torch may use here; see :func:`single_torch_threads`.

    The threads do not inherit modes of the caller, such as ``torch.no_grad``. An exception in a thread is raised here.
    """
    count = torch.get_num_threads()
    results = map(work, items) if count == 1 or len(items) < 2 else _pool(count).map(work, items)
    list(results)  # taking a result raises the exception of its thread


@cache
def _pool(count: int) -> ThreadPoolExecutor:
    return single_torch_threads(count)


os.register_at_fork(after_in_child=_pool.cache_clear)  # a forked process has none of the pool's threads
