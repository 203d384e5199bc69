"""The choice of AdamW²'s τ from runs that measured the ratios of their steps."""

import sys

import pytest

from scripts import choose_tau
from tests.runs import SMALL, metrics, train_here


def chosen(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["choose_tau.py", *arguments])
    return choose_tau.main()


def test_a_run_that_capped_nothing_tells_its_ratios(small_images, here, monkeypatch, capsys):
    measured = ("optim=adamw2", "optim.tau=1e9", "schedule.warmup_epochs=1", f"data.root={small_images}")
    train_here(*SMALL, *measured, "name=a")
    capsys.readouterr()
    assert chosen(monkeypatch, "outputs/a") == 0
    said = capsys.readouterr().out
    after = sorted(line["step_ratio_p99"] for line in metrics(here / "outputs/a", "train") if line["epoch"] > 1)
    assert len(after) == 10
    assert f"| outputs/a | {(after[4] + after[5]) / 2:.4f} | " in said and "τ = " in said
    assert (here / "tau.png").stat().st_size > 10_000


def test_other_runs_are_refused_in_one_line(small_images, here, monkeypatch, capsys):
    train_here(*SMALL, f"data.root={small_images}", "name=a", "max_steps=1")
    capsys.readouterr()
    assert chosen(monkeypatch, "outputs/a") == 2
    assert "was not trained with optim=adamw2 optim.tau=1e9" in capsys.readouterr().err
    assert chosen(monkeypatch, "outputs/none") == 2
    assert "error: outputs/none is not a run" in capsys.readouterr().err


def test_a_run_that_ended_in_its_warmup_says_so():
    with pytest.raises(ValueError, match="no steps after its warm-up"):
        choose_tau.summary([{"step_ratio_p99": 0.1, "epoch": 0.5}], 1.0, 99)
