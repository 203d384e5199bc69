"""How scripts end: in one line or none, with the right exit status. Wrong arguments end before anything is measured."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from engine.errors import UserError
from models import ModelError
from scripts.common.command_line import command
from tests.runs import PROJECT, environment

MODEL = "there is no model 'swin_tin': did you mean "
NO_NUMBER = "'0' is not a whole number of 1 or more"
NO_FOLDER = "/nowhere is not a folder"
BEGIN = "import sys, time\nfrom scripts.common.command_line import command\n@command\ndef main():\n"
END = "\nsys.exit(main())"


def started(body: str, **options: int) -> subprocess.Popen[str]:
    """A script with this ``main``."""
    program = [sys.executable, "-c", BEGIN + body + END]
    return subprocess.Popen(
        program, cwd=PROJECT, env=environment(), text=True, stderr=subprocess.PIPE, preexec_fn=hear_ctrl_c, **options
    )


def hear_ctrl_c() -> None:
    """The tests themselves may run in the background, where a shell lets processes ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def fails(error: Exception) -> Callable[[], int]:
    def main() -> None:
        raise error

    return command(main)


def test_a_mistake_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for error, message in (
        (UserError("no such run: name another"), "no such run: name another"),
        (ModelError("no such model"), "no such model"),
        (PermissionError(13, "Permission denied", "/x/tau.png"), "/x/tau.png: Permission denied"),
        (UserError("a\x1b[2Jb"), "a\\x1b[2Jb"),
    ):
        assert fails(error)() == 2
        assert capsys.readouterr().err == f"error: {message}\n"


def test_an_error_that_nobody_expects_keeps_its_traceback() -> None:
    with pytest.raises(ValueError, match="a fault of ours"):
        fails(ValueError("a fault of ours"))()


def test_the_status_is_that_of_main() -> None:
    assert [command(lambda: None)(), command(lambda: 1)()] == [0, 1]


def test_a_reader_that_has_seen_enough_ends_it_quietly() -> None:
    process = started("    for i in range(10**9): print(i, flush=True)", stdout=subprocess.PIPE)
    assert process.stdout.readline() == "0\n"
    process.stdout.close()
    assert (process.wait(100), process.stderr.read()) == (1, "")


def test_ctrl_c_is_one_line() -> None:
    process = started("    print('begun', flush=True); time.sleep(100)", stdout=subprocess.PIPE)
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    assert (process.wait(100), process.stderr.read()) == (130, "error: interrupted\n")


@pytest.mark.slow
def test_ctrl_c_ends_the_trainings_of_the_language_models(tmp_path: Path) -> None:
    """Those that wait do not begin: there are 54."""
    (tmp_path / "text.txt").write_text("To be, or not to be, that is the question. " * 50)
    typed = ["--text", str(tmp_path / "text.txt"), "--to", str(tmp_path), "--at-once", "1"]
    program = [sys.executable, str(PROJECT / "scripts/language.py"), *typed]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(
        program, env=environment(), text=True, start_new_session=True, preexec_fn=hear_ctrl_c, **pipes
    )
    assert "Pre-LN, AdamW, 0.001, 0: " in process.stdout.readline()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert (process.wait(60), process.stderr.read()) == (130, "error: interrupted\n")


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("bench.trace_step", "swin_tin", MODEL),
        ("bench.trace_step", "lipsformer_swin_tiny --vs swin_tin", MODEL),
        ("bench.step_speed", "timm/resnet50 swin_tin", MODEL),
        ("bench.exchange_speed", "swin_tin", MODEL),
        ("bench.save_speed", "swin_tin", MODEL),
        ("bench.save_speed", "lipsformer_swin_tiny --to /nowhere", NO_FOLDER),
        ("bench.optim_speed", "--models swin_tin", MODEL),
        ("bench.save_speed", "test_resnet --steps 10", "--steps 10 are too few for a save every 20 steps"),
        ("bench.exchange_speed", "test_vit --processes 1,0", NO_NUMBER),
        ("bench.trace_step", "test_vit --operations -1", "'-1' is not a whole number of 0 or more"),
        ("bench.model_speed", "--model test_vit", "test_vit is no LipsFormer"),
        ("bench.optim_speed", "--tau nan", "--tau nan is not above 0"),
        ("bench.model_speed", "--turns 0", NO_NUMBER),
        ("bench.depthwise_speed", "--batch-size 0", NO_NUMBER),
        ("bench.augment_speed", "--root /nowhere", NO_FOLDER),
        ("bench.loader_speed", "--root /nowhere", NO_FOLDER),
        ("bench.loader_speed", "--root conf", "conf/train is not a folder"),
        ("bench.access_speed", "--parquet /nowhere --root conf", NO_FOLDER),
        ("bench.access_speed", "--parquet conf --root conf", "conf holds no parquet files of train"),
        ("bench.index_speed", "--images 0", NO_NUMBER),
        ("model_table", "--turns 0", NO_NUMBER),
    ],
)
def test_a_wrong_argument_is_named_in_the_last_line(script, arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *arguments.split()])
    with pytest.raises(SystemExit) as ended:
        sys.exit(import_module(f"scripts.{script}").main())
    assert ended.value.code == 2 and message in capsys.readouterr().err.splitlines()[-1]
