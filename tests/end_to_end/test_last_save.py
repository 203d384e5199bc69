"""After an error a run saves its last steps. What happens meanwhile, or was in its folder before, does not stop it."""

import signal
import subprocess
import sys

import pytest

from engine.run_dir import RunDirectory
from tests.runs import NEVER_SAVED, PROJECT, SMALL, checkpoint, environment, metrics

# A run whose fourth step fails, and which gets the signal of the first argument while its last checkpoint is synced.
PROGRAM = """
import os, runpy, sys
from engine.step import TrainStep
number, train, take, fsync, due = int(sys.argv.pop(1)), sys.argv[1], TrainStep.take, os.fsync, []
def fail_in_step_4(self, step, batches):
    if step == 4:
        due.append(number)
        raise OSError("a disk is gone")
    return take(self, step, batches)
def interrupted(file):
    if due:
        os.kill(os.getpid(), due.pop())
    fsync(file)
TrainStep.take, os.fsync = fail_in_step_4, interrupted
sys.argv = sys.argv[1:]
runpy.run_path(train, run_name="__main__")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_the_last_save_does_not_end_it(number, small_images, here):
    options = (*SMALL, *NEVER_SAVED, f"data.root={small_images}", "name=a", "max_steps=9")
    command = [sys.executable, "-c", PROGRAM, str(int(number)), str(PROJECT / "train.py"), *options]
    done = subprocess.run(
        command, cwd=here, env=environment(PYTHONPATH=str(PROJECT)), capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 1 and "a disk is gone" in done.stderr, done.stderr
    assert checkpoint(here / "outputs/a")["step"] == 3
    assert [line["step"] for line in metrics(here / "outputs/a", "train")] == [1, 2, 3]


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
