"""The choice of AdamW²'s τ from runs that measured the ratios of their steps."""

import json
import re
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
    high = after[-2] + 0.91 * (after[-1] - after[-2])  # 99 % of the way from the first to the last of ten
    assert f"| outputs/a | {(after[4] + after[5]) / 2:.4f} | {high:.4f} |" in said
    tau = float(re.search(r"τ = (\S+) would", said)[1])
    assert high <= tau <= high + 0.001
    assert f"outputs/a: in {int(after[-1] > tau)} of 10 steps" in said
    assert (here / "tau.png").stat().st_size > 10_000
    capsys.readouterr()
    for arguments, message in (
        (("outputs/a", "--plot", "none/tau.png"), "No such file or directory"),
        (("outputs/a", "--plot", "tau.foo"), "'foo' is not supported"),
    ):
        assert chosen(monkeypatch, *arguments) == 2
        assert re.match(f"error: .*{message}", capsys.readouterr().err)


def test_other_runs_are_refused_in_one_line(small_images, here, monkeypatch, capsys):
    train_here(*SMALL, f"data.root={small_images}", "name=a", "max_steps=1")
    capsys.readouterr()
    assert chosen(monkeypatch, "outputs/a") == 2
    assert "was not trained with optim=adamw2 optim.tau=1e9" in capsys.readouterr().err
    assert chosen(monkeypatch, "outputs/none") == 2
    assert "error: outputs/none is not a run" in capsys.readouterr().err
    (here / "outputs/a/config.yaml").unlink()
    assert chosen(monkeypatch, "outputs/a") == 2
    assert "error: outputs/a is not a run: it has no config.yaml" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        chosen(monkeypatch, "outputs/a", "--percentile", "200")
    assert "'200' is not a number from 0 to 100" in capsys.readouterr().err


def test_the_run_with_the_largest_steps_decides(here, monkeypatch, capsys):
    for name, ratio in (("a", 0.02), ("b", 0.01)):
        (here / name).mkdir()
        lines = [{"split": "train", "step": i, "epoch": i, **dict.fromkeys(choose_tau.KINDS, ratio)} for i in range(9)]
        (here / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"split')
        (here / name / "config.yaml").write_text("optim: {name: adamw2, tau: 1e9}\nschedule: {warmup_epochs: 0}\n")
    assert chosen(monkeypatch, "b", "a") == 0
    assert "τ = 0.02 would have" in capsys.readouterr().out
    (here / "a/config.yaml").write_text("optim: {name: adamw2, tau: 0.1}\nschedule: {warmup_epochs: 0}\n")
    assert chosen(monkeypatch, "a") == 2


@pytest.mark.parametrize(
    ("value", "expected"), [(0.11027, 0.111), (0.02, 0.02), (0.000123401, 0.000124), (9.999, 10.0), (0.0, 0.0)]
)
def test_tau_is_rounded_up_to_three_digits(value, expected):
    assert choose_tau.rounded_up(value) == pytest.approx(expected, rel=1e-9)


def test_a_run_that_ended_in_its_warmup_says_so():
    with pytest.raises(ValueError, match="no steps after its warm-up"):
        choose_tau.after_warmup([{"step_ratio_p99": 0.1, "epoch": 0.5}], 1.0)
