"""Spreads work over processes, which end when the process that started them ends."""

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from data.concurrency.processes import end_with_parent
from data.errors import DataError

T = TypeVar("T")


def run_jobs(jobs: Iterable[Callable[[], T]], workers: int) -> Iterator[tuple[int, T]]:
    """Do each job in one of ``workers`` processes; yield the number and the result of each job as soon as it is done.

    Raises:
        DataError: if a process was killed. An error of a job is raised as it is; after it, no other job is started.
    """
    context = multiprocessing.get_context("forkserver")
    # The script comes first: it puts the project on sys.path, which is needed if another folder is the current one.
    context.set_forkserver_preload(["__main__", "data.prepare"])
    with ProcessPoolExecutor(workers, context, _start_process) as pool:
        try:
            numbers = {pool.submit(job): number for number, job in enumerate(jobs)}
            for done in as_completed(numbers):
                yield numbers[done], done.result()
        except BrokenProcessPool as error:
            raise DataError(
                "a process was killed, perhaps because memory ran out: run the same command again, with fewer --workers"
            ) from error
        except (KeyboardInterrupt, GeneratorExit):  # Ctrl-C, here or where the caller uses a result
            for process in multiprocessing.active_children():
                process.kill()  # a job may take minutes to end
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _start_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all processes; only the parent reacts
    end_with_parent()
