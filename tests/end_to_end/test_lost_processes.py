"""One of two processes is missing, works alone for long, or computes nonsense."""

import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.ports import free_port
from tests.runs import PROJECT, SMALL, checkpoint, environment, metrics

TIMEOUT = 8  # seconds; less might end a healthy run on a busy machine
SLOW_ALONE = f"""
from engine.checkpoints.checkpoint import Checkpoints
from stability import StabilityMonitor

def slow(method):
    return lambda *given: time.sleep({TIMEOUT} + 4) or method(*given)

Checkpoints.save, StabilityMonitor.after_update = slow(Checkpoints.save), slow(StabilityMonitor.after_update)
"""
# A process stands still in the middle of step 4. The other one waits for its gradients.
FREEZE = """
from engine.step import TrainStep
take = TrainStep.take
TrainStep.take = lambda self, step, batches: os.kill(os.getpid(), 19 * (step == 4)) or take(self, step, batches)
"""
POISON = """
import torch
from engine.step import TrainStep
take = TrainStep.take

def poisoned(self, step, batches):
    if step == 4:
        with torch.no_grad():
            self.parameters[0].fill_(float("nan"))
    return take(self, step, batches)

TrainStep.take = poisoned
"""
# A process takes step 3, and is gone before the processes add up their losses.
GONE = """
from engine.measuring.meter import Meter
read = Meter.read
Meter.read = lambda self, votes: os._exit(9) if self.unread[-1][0] == 3 else read(self, votes)
"""
# A process cannot read the images of step 4, or waits for them forever.
BROKEN, HANGING = (
    f"""
from data import DataError, Loader
train = Loader.train

def without_the_fourth(self, plan, first, last):
    for number, batch in enumerate(train(self, plan, first, last)):
        if number == 3:
            {fault}
        yield batch

Loader.train = without_the_fourth
"""
    for fault in ('raise DataError("the disk is gone")', "while True: self.look(); time.sleep(0.1)")
)
SLOW_SAVE = """
from engine.checkpoints.checkpoint import Checkpoints
save = Checkpoints.save
Checkpoints.save = lambda *given, **named: time.sleep(4) or save(*given, **named)
"""
TRAIN = f"""
sys.argv[0] = "{PROJECT}/train.py"
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@contextmanager
def pair(here: Path, patches: list[str], *options: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Two processes that train together, each with its patch.

    They start without torchrun, which would end both when one has failed.
    """
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", f"import os, runpy, sys, time\n{patch}{TRAIN}", *options],
            cwd=here,
            env=environment(RANK=str(rank), LOCAL_RANK=str(rank), PYTHONPATH=str(PROJECT), **shared),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, patch in enumerate(patches)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [1, 0])
def test_a_process_that_stands_still_is_named_by_the_other(frozen, small_images, here):
    common = (*SMALL, f"data.root={small_images}", "name=a", "checkpoint.every_steps=1", f"ddp_timeout={TIMEOUT}")
    patches = ["", ""]
    patches[frozen] = FREEZE
    with pair(here, patches, *common) as processes:
        state = Path(f"/proc/{processes[frozen].pid}/stat")
        began = now = time.monotonic()  # when it was seen to run for the last time
        while state.read_text().split()[2] != "T" and processes[frozen].poll() is None:
            began = now
            time.sleep(0.1)
            now = time.monotonic()
        other = processes[1 - frozen]
        _, errors = other.communicate(timeout=250)
        took = time.monotonic() - began
    assert other.returncode == 1 and len(errors.splitlines()) == 1, errors
    assert re.match(rf"error: no answer from rank {frozen} on {re.escape(socket.gethostname())}\b", errors), errors
    assert TIMEOUT < took < 200, "not at once, and not after the ten minutes in which a process may work alone"
    # Rank 0 stands still while its thread still writes the checkpoint of step 3.
    assert checkpoint(here / "outputs/a")["step"] in ((3,) if frozen == 1 else (2, 3))


@pytest.mark.slow
def test_a_step_that_was_taken_before_a_process_was_gone_is_saved_and_in_the_metrics(small_images, here):
    common = (*SMALL, f"data.root={small_images}", "name=a", f"ddp_timeout={TIMEOUT}")
    with pair(here, ["", GONE], *common) as processes:
        _, errors = processes[0].communicate(timeout=250)
    assert processes[0].returncode == 1, errors
    assert checkpoint(here / "outputs/a")["step"] == 3
    assert [line["step"] for line in metrics(here / "outputs/a", "train")] == [1, 2, 3]


@pytest.mark.slow
def test_instruments_and_a_save_may_take_longer_than_the_time_out(small_images, here):
    common = (*SMALL, f"data.root={small_images}", "name=a", "max_steps=2", "monitor.every=2")
    with pair(here, [SLOW_ALONE, ""], *common, f"ddp_timeout={TIMEOUT}") as processes:
        for process in processes:
            _, errors = process.communicate(timeout=200)
            assert process.returncode == 0, errors
    assert checkpoint(here / "outputs/a")["step"] == 2
    assert [line["step"] for line in metrics(here / "outputs/a", "stability")] == [2]


@pytest.mark.slow
def test_weights_that_are_not_finite_in_one_process_end_both(small_images, here):
    common = (*SMALL, f"data.root={small_images}", "name=a", "checkpoint.every_steps=3", "log_every=3")
    with pair(here, ["", POISON], *common) as processes:
        said = processes[0].communicate(timeout=250)[1]
        processes[1].communicate(timeout=250)
    assert [process.returncode for process in processes] == [1, 1]
    assert re.search(r"^error: the loss or gradient was not finite at step 4: .*step 3", said, re.M), said
    kept = checkpoint(here / "outputs/a")
    assert kept["step"] == 3 and all(torch.isfinite(weights).all() for weights in kept["model"].values())


@pytest.mark.slow
def test_a_process_without_images_stays_until_the_first_one_has_saved_the_steps_before(small_images, here):
    """With NCCL, the first process could not save once the other one is gone."""
    common = (*SMALL, f"data.root={small_images}", "name=a")
    with pair(here, [SLOW_SAVE, BROKEN], *common) as processes:
        said = processes[1].communicate(timeout=250)[1]
        assert checkpoint(here / "outputs/a")["step"] == 3
        told = processes[0].communicate(timeout=250)[1]
    assert [process.returncode for process in processes] == [1, 2]
    # Without torchrun, the store ends with the first process, and torch may print that it is gone.
    assert said.splitlines()[-1] == "error: the disk is gone (process 1)"
    assert re.search(r"^error: rank 1 on \S+ cannot go on: the disk is gone$", told, re.M), told
    assert [line["step"] for line in metrics(here / "outputs/a", "train")] == [1, 2, 3]


@pytest.mark.slow
def test_sigterm_ends_a_wait_for_a_process_without_images(small_images, here):
    with pair(here, ["", HANGING], *SMALL, f"data.root={small_images}", "name=a") as processes:
        file = here / "outputs/a/metrics.jsonl"
        while processes[0].poll() is None and not (file.exists() and file.read_text().count('"train"') == 3):
            time.sleep(0.1)
        for process in processes:
            process.terminate()
        said = [process.communicate(timeout=250)[1] for process in processes]
    assert [process.returncode for process in processes] == [143, 143], said
    assert all("stopped by a signal" in line for line in said)
    assert checkpoint(here / "outputs/a")["step"] == 3
