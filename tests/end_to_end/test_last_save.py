"""After an error a run saves its last steps. What happens meanwhile, or was in its folder before, does not stop it."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from engine.callbacks.progress import Progress
from engine.errors import RunStopped
from engine.run_dir import RunDirectory
from engine.step import TrainStep
from tests.runs import NEVER_SAVED, SMALL, checkpoint, metrics, train_here


@contextmanager
def listened_to(number: int) -> Iterator[None]:
    """A signal that no run listens to fails the test, and does not end this process."""
    before = signal.signal(number, lambda *_: pytest.fail("the run does not listen to the signal"))
    try:
        yield
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_the_last_save_does_not_end_it(number, small_images, here, monkeypatch):
    """The fourth step fails, and the signal comes while the last checkpoint is synced to the disk."""
    take, fsync, due = TrainStep.take, os.fsync, []

    def fail_in_step_4(self, step, batches):
        if step == 4:
            due.append(number)
            raise OSError("a disk is gone")
        return take(self, step, batches)

    def interrupted(file):
        if due:
            os.kill(os.getpid(), due.pop())
        fsync(file)

    monkeypatch.setattr(TrainStep, "take", fail_in_step_4)
    monkeypatch.setattr(os, "fsync", interrupted)
    with listened_to(number), pytest.raises(OSError, match="a disk is gone"):
        train_here(*SMALL, *NEVER_SAVED, f"data.root={small_images}", "name=a", "max_steps=9")
    assert not due, "the signal came"
    assert checkpoint(here / "outputs/a")["step"] == 3
    assert [line["step"] for line in metrics(here / "outputs/a", "train")] == [1, 2, 3]


def test_a_second_signal_while_callbacks_finish_does_not_end_the_run(small_images, here, monkeypatch):
    """SLURM asks a run to stop, and then torchrun asks once more."""
    take, end = TrainStep.take, Progress.on_end

    def asked_in_step_3(self, step, batches):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return take(self, step, batches)

    def asked_at_the_end(self):
        os.kill(os.getpid(), signal.SIGTERM)
        end(self)

    monkeypatch.setattr(TrainStep, "take", asked_in_step_3)
    monkeypatch.setattr(Progress, "on_end", asked_at_the_end)
    with listened_to(signal.SIGTERM), pytest.raises(RunStopped, match="by a signal after step 3, which is saved"):
        train_here(*SMALL, *NEVER_SAVED, f"data.root={small_images}", "name=a", "max_steps=9")
    assert checkpoint(here / "outputs/a")["step"] == 3


def test_bytes_in_the_metrics_that_are_no_line_are_skipped(tmp_path):
    directory = RunDirectory(tmp_path)
    files = {directory.metrics: b'"split": "train"', directory.stability: b'"layers": {}'}
    for file, kind in files.items():
        lines = (b'{%b, "step": 1}', b'{%b, "st\xff', b"5 %b", b"{%b}", b'{"of": {%b}, "step": 2}', b'{%b, "step": 3}')
        file.write_bytes(b"\n".join(line % kind for line in lines) + b"\n\0\0")
    for read in (directory.read_metrics, directory.read_stability):
        assert [line["step"] for line in read()] == [1, 3]
    directory.cut_metrics(step=1, validated=0)
    assert directory.read_metrics() == [{"split": "train", "step": 1}]
    assert directory.read_stability() == [{"layers": {}, "step": 1}]
