"""Train the cells of a study with ``train.py``, several at a time, and read what came of them."""

import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from queue import SimpleQueue

import torch

from engine.device import default_workers
from engine.errors import USER_ERRORS, UserError
from engine.options.compose import settings_of
from engine.run_dir import RunDirectory
from models import build_model
from optim import build_optimizer, refuse_rates_above_peak
from scripts.studies.origin import commit_now
from scripts.studies.results import Outcome
from scripts.studies.study import PROJECT, Cell

# A killed study loses no more than this of the cells that it was training.
ALWAYS = ("logger=none", "checkpoint.every_minutes=1", "checkpoint.keep=1")
NOT_FINITE = re.compile(r"not finite at step (\d+)")
TAKEN = "another process trains"
RETRY_SECONDS = 5.0


class Stopped(Exception):
    """The study was asked to end; its cells have saved their steps."""


def refuse_mistakes(cells: Sequence[Cell]) -> None:
    """Compose the options of all cells and build their models, without memory: the last cell may come after hours.

    Raises:
        UserError: naming the first cell that cannot be trained.
    """
    checked: set[tuple[str, ...]] = set()
    for cell in cells:
        unseeded = tuple(option for option in cell.options if not option.startswith("seed="))
        if unseeded in checked:
            continue
        checked.add(unseeded)
        try:
            cfg = settings_of(cell.options)
            with torch.device("meta"):
                model = build_model(cfg.model, cfg.model.num_classes or 1000, cfg.data.crop)
            build_optimizer(cfg.optim, model, cfg.batch_size)
            refuse_rates_above_peak(cfg.schedule, cfg.optim, cfg.batch_size)
        except USER_ERRORS as error:
            raise UserError(f"{cell.name}: {error}") from error


class Trainer:
    """Trains cells in processes of their own. One that was interrupted goes on where it stopped.

    Args:
        folder: of the run directories.
        crash_below: a run that ends with less top-1, in percent, has crashed.
        threads: of each process.
        gpus: the GPUs as ``CUDA_VISIBLE_DEVICES`` names them; each training gets one. Empty: this process's devices.
    """

    def __init__(self, folder: Path, crash_below: float, threads: int, gpus: Sequence[str] = ()):
        self.folder, self.crash_below, self.threads, self.gpus = folder, crash_below, threads, gpus
        self.free: SimpleQueue[str] = SimpleQueue()  # a GPU for each training that may begin
        self.max_workers = 1
        self.running: dict[str, subprocess.Popen[str]] = {}
        self.commits: dict[str, str] = {}  # by the name of the run: the project's commit when its training began
        self.stopping = False

    def train_all(self, cells: list[Cell], at_once: int) -> Iterator[tuple[Cell, Outcome]]:
        """Train cells, and yield each with its outcome when it has ended.

        Raises:
            UserError: if a cell cannot be trained.
            Stopped: after a signal.
        """
        self.max_workers = default_workers(at_once)
        for i in range(at_once if self.gpus else 0):
            self.free.put(self.gpus[i % len(self.gpus)])
        with self._listening(), ThreadPoolExecutor(at_once) as pool:
            left = iter(cells)
            waiting = {pool.submit(self._train, cell): cell for cell in islice(left, at_once)}
            try:
                while waiting:
                    done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in done:
                        cell, outcome = waiting.pop(future), future.result()
                        for following in islice(left, 1):  # begins while the caller works on this outcome
                            waiting[pool.submit(self._train, following)] = following
                        yield cell, outcome
            finally:
                self._end()

    def _train(self, cell: Cell) -> Outcome:
        if self.stopping:
            raise Stopped
        folder = self.folder / cell.run_name
        self.commits[cell.run_name] = commit_now()
        command = [
            sys.executable,
            str(PROJECT / "train.py"),
            f"max_workers={self.max_workers}",
            *cell.options,
            *ALWAYS,
            f"output_dir={folder}",
            f"name={cell.name}",
        ]
        started = time.monotonic()
        status, said = self._run(cell, command)
        while TAKEN in said and not self.stopping:  # a lab that was killed has left this training, which soon ends
            time.sleep(RETRY_SECONDS)
            status, said = self._run(cell, command)
        if self.stopping:
            raise Stopped
        return outcome_of(folder, status, said, self.crash_below, time.monotonic() - started)

    def _run(self, cell: Cell, command: list[str]) -> tuple[int, str]:
        """Run a training. Returns its exit status and what it wrote to stderr."""
        gpu = self.free.get() if self.gpus else None
        process = subprocess.Popen(
            command,
            env=os.environ | {"OMP_NUM_THREADS": str(self.threads)} | ({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {}),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C reaches this process alone, which then asks the cells to save
        )
        self.running[cell.run_name] = process
        if self.stopping:  # since before it was known to be running
            process.terminate()
        said = process.communicate()[1]
        del self.running[cell.run_name]
        if gpu:
            self.free.put(gpu)
        return process.returncode, said

    def _end(self) -> None:
        """Ask the cells that still run to save and to end."""
        self.stopping = True
        for process in list(self.running.values()):
            process.terminate()

    @contextmanager
    def _listening(self) -> Iterator[None]:
        def stop(*_: object) -> None:
            self._end()

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def visible_gpus() -> list[str]:
    """The GPUs of this process, as ``CUDA_VISIBLE_DEVICES`` names them."""
    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] or [str(i) for i in range(count)]


def outcome_of(folder: Path, status: int, said: str, crash_below: float, seconds: float) -> Outcome:
    """Read a run's metrics.

    Args:
        folder: the run directory.
        status: exit status of ``train.py``.
        said: what it wrote to stderr.
        crash_below: see :class:`Trainer`.
        seconds: how long it ran.

    Raises:
        UserError: if it ended for another reason than a loss that is not finite.
    """
    diverged = NOT_FINITE.search(said)
    if status != 0 and diverged is None:
        raise UserError(f"the cell {folder.name} cannot be trained: {why_it_ended(status, said)}")
    lines = RunDirectory(folder).read_metrics()
    losses = [math.inf if line["loss"] is None else line["loss"] for line in lines if line["split"] == "train"]
    accuracies = [line["top1"] or 0.0 for line in lines if line["split"] == "val"]
    top1 = accuracies[-1] if accuracies and diverged is None else None
    return Outcome(
        top1=top1,
        best_top1=max(accuracies, default=None),
        lowest_loss=min(losses, default=math.inf),
        last_loss=losses[-1] if losses else math.inf,
        crashed=top1 is None or top1 < crash_below,
        diverged_at=int(diverged[1]) if diverged else None,
        seconds=round(seconds, 1),
    )


def why_it_ended(status: int, said: str) -> str:
    """The error that ``train.py`` wrote, without ``error:``."""
    errors = [line for line in said.splitlines() if line.startswith("error:")]
    return errors[-1].removeprefix("error: ") if errors else f"it ended with status {status}: {said[-300:]}"


def forget(folder: Path) -> None:
    """Remove the checkpoints of a run whose row is written. If the row is deleted later, the run starts anew."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
