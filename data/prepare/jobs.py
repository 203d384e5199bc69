"""Work spread over processes, which end with the one that started them."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import TypeVar

from data.errors import DataError

T = TypeVar("T")


def run_jobs(jobs: Iterable[Callable[[], T]], workers: int) -> Iterator[tuple[int, T]]:
    """Do each job in one of ``workers`` processes; number and result of each as it is done.

    Raises:
        DataError: where a process was killed; and whatever a job raises, after which no other job is begun.
    """
    context = multiprocessing.get_context("forkserver")
    # The script first: from another folder than the project's, only it knows where the project is.
    context.set_forkserver_preload(["__main__", "data.prepare"])
    with ProcessPoolExecutor(workers, context, _end_with_parent) as pool:
        numbers = {pool.submit(job): number for number, job in enumerate(jobs)}
        try:
            for done in as_completed(numbers):
                yield numbers[done], done.result()
        except BrokenProcessPool as error:
            raise DataError(
                "a process was killed, perhaps for lack of memory: run the same command again, with fewer --workers"
            ) from error
        except KeyboardInterrupt:
            for process in multiprocessing.active_children():
                process.kill()  # a job may take minutes to end
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _end_with_parent() -> None:
    """Without this, a process whose parent was killed would wait for work for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent decides
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
