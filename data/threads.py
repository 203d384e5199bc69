"""Threads that share whole images among them, where torch would share the pixels of each."""

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier
from typing import TypeVar

import torch

T = TypeVar("T")


def lone_threads(count: int) -> ThreadPoolExecutor:
    """A pool of threads in which torch uses no others.

    Short operations are not worth sharing: beside other work most of their time goes by in waiting for the slower
    thread.
    """
    own = torch.get_num_threads()
    all_there = Barrier(count)
    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
    for thread in [pool.submit(all_there.wait) for _ in range(count)]:
        thread.result()
    torch.set_num_threads(own)  # what a thread says of itself is taken for threads to come as well
    return pool


def share_out(work: Callable[[T], object], items: Sequence[T]) -> None:
    """Do the work on every item, in as many lone threads as torch may use here.

    Modes of the caller, such as ``torch.no_grad``, do not hold there. Whatever an item raises is raised here.
    """
    count = torch.get_num_threads()
    alone = count == 1 or len(items) < 2
    deque(map(work, items) if alone else _pool(count).map(work, items), maxlen=0)


@cache
def _pool(count: int) -> ThreadPoolExecutor:
    return lone_threads(count)


os.register_at_fork(after_in_child=_pool.cache_clear)  # a fork has none of the threads
