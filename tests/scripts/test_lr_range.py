"""The search for the highest stable learning rate."""

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from scripts import lr_range
from scripts.lr_range import Trial, search
from tests.runs import PROJECT, SMALL, environment


def model_that_fails_from(limit: float, best: float = 1e-3):
    """A made training: it learns most at the rate ``best``, less the farther away, and nothing from ``limit`` on."""

    def train(rate: float) -> Trial:
        learned = 0.0 if rate >= limit else max(1 - 0.1 * abs(math.log2(rate / best)), 0.01)
        return Trial(rate, 2.3, 2.3 - learned, 100)

    return train


@pytest.mark.parametrize("limit", [1.3e-3, 5e-3, 6.2e-3, 2.5e-2])
def test_the_highest_rate_that_trains_is_found_to_half_an_octave(limit):
    train = model_that_fails_from(limit)
    good, failing, trials = search(train(1e-3), train)
    assert good < limit <= failing <= lr_range.CLOSE * good
    assert len(trials) <= 8


def test_a_recipe_that_fails_is_searched_downwards():
    train = model_that_fails_from(2e-4, best=1e-4)
    good, failing, _ = search(train(1e-3), train)
    assert good < 2e-4 <= failing <= lr_range.CLOSE * good


def test_a_rate_that_is_too_low_to_learn_is_not_taken_for_unstable():
    """The recipe's rate learns almost nothing; sixteen times higher ones learn well."""

    def train(rate: float) -> Trial:
        learned = 0.01 if rate < 4e-5 else 0.0 if rate > 3e-3 else 1.0
        return Trial(rate, 2.3, 2.3 - learned, 100)

    good, failing, _ = search(train(1e-5), train)
    assert good <= 3e-3 < failing <= lr_range.CLOSE * good


def test_a_model_that_never_fails_or_always_does_ends_the_search():
    def never(rate: float) -> Trial:
        return Trial(rate, 2.3, 1.3, 100)

    always = model_that_fails_from(0.0)
    assert search(always(1e-3), always)[0] is None
    good, failing, _ = search(never(1e-3), never)
    assert failing is None and good == pytest.approx(1e-3 * lr_range.FARTHEST)


def test_a_loss_that_is_not_finite_learned_nothing():
    sound, bad = Trial(1e-3, 2.3, 2.0, 9), (Trial(1.0, 2.3, math.inf, 9), Trial(1.0, math.inf, math.inf, 0))
    for trial in bad:
        assert not lr_range.trains(trial, [sound, trial]) and lr_range.trains(sound, [sound, trial])


def test_a_trial_that_learned_less_than_half_as_much_as_the_best_fails():
    best, half, less = (Trial(1e-3, 2.3, 2.3 - learned, 100) for learned in (1.0, 0.51, 0.49))
    assert [lr_range.trains(trial, [best, half, less]) for trial in (best, half, less)] == [True, True, False]


MADE = """
import json, pathlib, sys
options = dict(word.split("=", 1) for word in sys.argv[1:])
folder = pathlib.Path(options["output_dir"])
folder.mkdir()
(folder / "options.json").write_text(json.dumps(options))
lines = [{"split": "train", "step": i, "loss": loss, "lr": float(options.get("optim.lr", 0.5))} for i, loss in LOSSES]
lines.insert(1, {"split": "stability", "step": 1})
(folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
"""


@pytest.mark.parametrize(("rate", "expected"), [(None, 0.5), (0.25, 0.25)])
def test_a_training_has_no_warm_up_and_is_judged_by_its_last_quarter(rate, expected, tmp_path, monkeypatch):
    """The training is made: it writes down its options, and these losses."""
    losses = (8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0)
    (tmp_path / "train.py").write_text(MADE.replace("LOSSES", repr(list(enumerate(losses, 1)))))
    monkeypatch.setattr(lr_range, "PROJECT", tmp_path)
    (tmp_path / "runs").mkdir()
    typed = ["model=cswin_tiny", "schedule.warmup_epochs=20", "optim.lr=0.5"]
    trial = lr_range.Trainer(typed, len(losses), tmp_path / "runs")(rate)
    assert trial == Trial(expected, 8.0, 1.5, 8)
    (file,) = tmp_path.glob("runs/*/options.json")
    options = json.loads(file.read_text())
    assert options["model"] == "cswin_tiny" and float(options["optim.lr"]) == expected
    assert float(options["schedule.warmup_epochs"]) == 0
    assert (options["logger"], options["log_every"]) == ("none", "1")


def test_a_mistake_is_one_line(monkeypatch, capsys):
    for arguments, message in (
        (("steps=3", "model=cswin_tiny"), "steps=3 must be a whole number of 4 or more"),
        (("model=cswim_tiny",), "model=cswim_tiny is unknown: did you mean"),
        (("step=6", "model=cswin_tiny"), "step= is no argument here: type steps=N"),
    ):
        monkeypatch.setattr(sys, "argv", ["lr_range.py", *arguments])
        assert lr_range.main() == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: {message}") and said.count("\n") == 1, said


@pytest.mark.slow
def test_real_trainings_end_with_both_rates(small_images, tmp_path):
    """Rates from ten on make the loss of this small model useless or not finite."""
    options = (*SMALL, f"data.root={small_images}", "optim=sgd", "optim.lr=0.5", "steps=12")
    command = [sys.executable, str(PROJECT / "scripts/lr_range.py"), *options]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stderr
    assert "warning: 12 steps say little about a rate: give 50 or more" in done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].endswith("(the recipe's)") and "lr 5.00e-01" in lines[0]
    assert lines[-2].startswith("highest stable learning rate") and "12 steps, no warm-up" in lines[-2]
    assert lines[-1].startswith("the recipe's                  5.00e-01")
    assert not list(Path(tmp_path).iterdir()), "nothing is left"


@pytest.mark.slow
def test_a_signal_ends_the_training_too(small_images, tmp_path):
    options = (*SMALL, f"data.root={small_images}", "steps=5000", "epochs=999")
    command = [sys.executable, str(PROJECT / "scripts/lr_range.py"), *options]
    searching = subprocess.Popen(command, env=environment(TMPDIR=str(tmp_path)), start_new_session=True)
    while searching.poll() is None and not list(tmp_path.glob("lr_range-*/*/metrics.jsonl")):
        time.sleep(0.1)
    searching.terminate()
    assert searching.wait(100) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.killpg(searching.pid, 0)
    assert not list(tmp_path.glob("lr_range-*"))


def test_a_signal_while_a_training_is_being_started_ends_it_too(tmp_path, monkeypatch):
    """The training is a program that sleeps."""
    start, started = subprocess.Popen, []

    def interrupted(command, **options):
        started.append(start(["sleep", "60"], **options))
        os.kill(os.getpid(), signal.SIGTERM)
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    monkeypatch.setattr(sys, "argv", ["lr_range.py", "model=cswin_tiny", "steps=60"])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    # What would end a process must not end this one.
    signal.signal(signal.SIGTERM, lambda *_: pytest.fail("the search does not listen to the signal"))
    try:
        with pytest.raises(SystemExit) as end:
            lr_range.main()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert end.value.code == 128 + signal.SIGTERM
    assert [process.returncode for process in started] == [-signal.SIGKILL]
    assert not list(tmp_path.iterdir())
