"""Threads that share images among them, where torch would share the pixels of each."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch


def lone_threads(count: int) -> ThreadPoolExecutor:
    """A pool of threads in which torch uses no others.

    Operations on one image are too small to share: beside other work most of their time goes by in waiting for the
    slower thread.
    """
    own = torch.get_num_threads()
    all_there = Barrier(count)
    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
    for thread in [pool.submit(all_there.wait) for _ in range(count)]:
        thread.result()
    torch.set_num_threads(own)  # what a thread says of itself is taken for threads to come as well
    return pool
