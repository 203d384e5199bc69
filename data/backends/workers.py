"""The worker processes of the torch backend: how they start and end, and the shared memory for their batches."""

import atexit
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from pathlib import Path
from typing import ClassVar, NoReturn
from weakref import WeakSet

from data.concurrency.processes import end_with_parent
from data.errors import DataError, in_one_line

SHARED = Path("/dev/shm")  # where torch and multiprocessing put memory that processes share
REMEDY = (
    "provide more (docker: --ipc=host, or --shm-size=16g; Kubernetes: an emptyDir of medium Memory at /dev/shm), "
    "lower max_workers or eval.batch_size, or avoid shared memory: data.backend=dali, or max_workers=0"
)
IN_FLIGHT = 2  # batches of each worker that are in work or wait to be used; DataLoader's default prefetch_factor
SECONDS_TO_END = 5.0  # in which the news of a worker's end arrives, also on a busy machine

# Signals that workers ignore. A terminal and SLURM send them to the whole process group, but the workers must go on
# until the run has saved and ends them.
OUTLIVED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


def start_worker(worker: int) -> None:
    """Prepare a new worker: it ignores the signals in ``OUTLIVED`` and ends with its parent."""
    for number in OUTLIVED:
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()
    # Called in the thread that sends batches. Python would drop the batch, and the run would wait for it for ever.
    setattr(Queue, "_on_queue_feeder_error", staticmethod(_end_at_lost_batch))  # noqa: B010  (types leave it out)


def _end_at_lost_batch(error: Exception, batch: object) -> NoReturn:
    """End this worker, which the run then notices, because a batch cannot be sent."""
    print(f"a data worker cannot send a batch ({in_one_line(error)})", file=sys.stderr, flush=True)
    os._exit(1)


def has_one_ended(workers: list[BaseProcess]) -> bool:
    """Whether a worker has ended, or ends within a few seconds.

    A killed worker closes its connections first. This process reads an error from them before it hears that the worker
    has ended: the forkserver says so, and on a busy machine it is late.
    """
    return bool(wait([worker.sentinel for worker in workers], timeout=SECONDS_TO_END))


@atexit.register
def _end_workers() -> None:
    """Kill the workers that still run. They ignore SIGTERM, so this process would wait for them for ever."""
    for process in multiprocessing.active_children():
        process.kill()


def clean_start(preload: list[str]) -> BaseContext:
    """How workers start: as forks of a process that has only imported what they need.

    A fork of this process would sometimes hang: its threads (CUDA's, DALI's, a logger's) are not copied, but the locks
    that they hold at that moment are.

    Args:
        preload: the modules that the workers need.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(preload)
    # The new processes inherit the blocked signals. A signal for this process arrives when they are unblocked.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, OUTLIVED)
    try:
        # Starting the tracker unblocks signals. Start it before forkserver.ensure_running does, and block them again.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, OUTLIVED)
        with _project_on_path():
            forkserver.ensure_running()
    except OSError as error:  # such as a socket path that a TMPDIR of more than about 100 characters makes too long
        raise DataError(
            f"the data workers cannot be started ({error}): set TMPDIR to a shorter path, or max_workers=0"
        ) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


@contextmanager
def _project_on_path() -> Iterator[None]:
    """Let a Python process that starts in this block find this project's packages, and not folders of the same names.

    It would search the current folder first, which is the user's and may hold another folder ``data``.
    """
    project = str(Path(__file__).resolve().parents[2])
    before = {name: os.environ.get(name) for name in ("PYTHONPATH", "PYTHONSAFEPATH")}
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (project, before["PYTHONPATH"])))
    os.environ["PYTHONSAFEPATH"] = "1"  # without the current folder
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class SharedMemory:
    """The shared memory that a backend will fill once it runs.

    Args:
        workers: number of its worker processes.
        batch: bytes of its largest batch.
        processes: number of processes of this run on this machine; each has such a backend.

    Raises:
        DataError: if there is no shared memory, or this backend and the others of this process will need more than is
            free.
    """

    _all: ClassVar["WeakSet[SharedMemory]"] = WeakSet()  # training and validation each have one at the same time

    def __init__(self, workers: int, batch: int, processes: int):
        # Other systems keep shared memory elsewhere.
        if sys.platform == "linux" and not os.access(SHARED, os.W_OK):
            raise DataError(f"the data workers need shared memory, but {SHARED} cannot be written: {REMEDY}")
        self.needed = shared_bytes(workers, batch) * processes
        self._all.add(self)
        free, needed = free_memory(), sum(one.needed for one in self._all)
        if needed > free:
            raise DataError(
                f"the data workers need {_megabytes(needed)} of shared memory, but {SHARED} has {_megabytes(free)} "
                f"free: {REMEDY}"
            )


def shared_bytes(workers: int, batch: int) -> int:
    """Bytes of shared memory that the workers of a backend fill, with batches of ``batch`` bytes."""
    return (IN_FLIGHT * workers + 2) * batch  # + 2: one batch is in use, the next one is taken


def free_memory() -> float:
    """Free bytes of shared memory; infinite if there is no ``SHARED``."""
    try:
        found = os.statvfs(SHARED)
    except OSError:
        return float("inf")
    return found.f_bavail * found.f_frsize


def no_memory(error: RuntimeError) -> DataError:
    """The error for a batch that does not fit in shared memory."""
    free = _megabytes(free_memory())
    return DataError(f"a data worker found no shared memory for a batch ({SHARED} has {free} free): {REMEDY}")


def _megabytes(size: float) -> str:
    return f"{size / 2**20:.1f} MB"
