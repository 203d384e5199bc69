"""Work spread over processes, which end with the one that started them."""

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from data.errors import DataError
from data.processes import end_with_parent

T = TypeVar("T")


def run_jobs(jobs: Iterable[Callable[[], T]], workers: int) -> Iterator[tuple[int, T]]:
    """Do each job in one of ``workers`` processes; number and result of each as it is done.

    Raises:
        DataError: where a process was killed; and whatever a job raises, after which no other job is begun.
    """
    context = multiprocessing.get_context("forkserver")
    # The script first: from another folder than the project's, only it knows where the project is.
    context.set_forkserver_preload(["__main__", "data.prepare"])
    with ProcessPoolExecutor(workers, context, _start_process) as pool:
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


def _start_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent decides
    end_with_parent()
