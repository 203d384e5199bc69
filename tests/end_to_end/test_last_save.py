"""After an error a run saves its last steps. What happens meanwhile, or was in its folder before, does not stop it."""

import os
import signal

import pytest

from engine.run_dir import RunDirectory
from engine.step import TrainStep
from tests.runs import NEVER_SAVED, SMALL, checkpoint, in_a_fork, metrics, train_here


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_during_the_last_save_does_not_end_it(number, small_images, here, monkeypatch):
    take, fsync, sent = TrainStep.take, os.fsync, []

    def fail_in_step_4(self, step, batches):
        if step == 4:
            raise OSError("a disk is gone")
        return take(self, step, batches)

    def interrupted(file):
        if not sent:
            sent.append(os.kill(os.getpid(), number))
        fsync(file)

    monkeypatch.setattr(TrainStep, "take", fail_in_step_4)
    monkeypatch.setattr(os, "fsync", interrupted)
    code = in_a_fork(lambda: train_here(*SMALL, *NEVER_SAVED, f"data.root={small_images}", "name=a", "max_steps=9"))
    assert code == 1, "the error of the disk"
    assert checkpoint(here / "outputs/a")["step"] == 3
    assert [line["step"] for line in metrics(here / "outputs/a", "train")] == [1, 2, 3]


def test_bytes_in_the_metrics_that_are_no_line_are_skipped(tmp_path):
    directory = RunDirectory(tmp_path)
    for file in (directory.metrics, directory.stability):
        file.write_bytes(b'{"split": "train", "step": 1}\n{"split": "tr\xff\n5\n{"split": "val"}\n{"step": 2}\n\0\0')
    assert [line["step"] for line in directory.read_metrics()] == [1, 2]
    directory.cut_metrics(step=1, validated=0)
    assert directory.read_metrics() == directory.read_stability() == [{"split": "train", "step": 1}]
