"""Ctrl-C: what a command says and how it ends, from its first second on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.processes.signals import StopRequest
from tests.runs import PROJECT, command, environment

# Pressed, passed on by torchrun after a tenth of a second, and pressed again more than a second later.
PRESSED = """
import os, signal
from types import SimpleNamespace
from engine.processes import signals

signals.time = SimpleNamespace(monotonic=lambda: now)
with signals.StopRequest().listening():
    for now in (5.0, 5.1, 6.3):
        os.kill(os.getpid(), signal.SIGINT)
        print("still here", flush=True)
"""


@pytest.mark.parametrize("entry", ["train.py", "eval.py"])
def test_a_command_that_is_still_importing_ends_without_a_word(entry: str, tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(entry, "--help"),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells ignore it for commands in background
    )
    while "libtorch_cpu" not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=250)
    assert (process.returncode, said) == (-signal.SIGINT, b"")


def test_the_first_one_says_what_happens_and_the_second_one_ends_the_run_now() -> None:
    done = subprocess.run([sys.executable, "-c", PRESSED], cwd=PROJECT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 128 + signal.SIGINT
    assert done.stdout.count("still here") == 2, "torchrun passes on the Ctrl-C that the terminal sent to all"
    assert done.stderr.splitlines() == [
        "stopping: the run saves after this step or validation; Ctrl-C again ends it now, without saving",
        "error: interrupted",
    ]


def test_only_the_first_process_of_a_machine_says_it(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    for rank, said in (("0", 1), ("1", 0)):
        monkeypatch.setenv("LOCAL_RANK", rank)
        stop = StopRequest()
        with stop.listening():
            os.kill(os.getpid(), signal.SIGINT)
        assert stop and capfd.readouterr().err.count("stopping") == said
