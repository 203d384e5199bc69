"""Runs say after each validation where they stand, if there is a reference for exactly what they train."""

from pathlib import Path

import pytest

from engine.callbacks import on_track
from engine.reference import Course, write_reference
from tests.runs import SMALL, train_here

SAID = (": after epoch 1 of 2 top-1 is ", "the reference had ", "(conf/experiment/small.json)")


@pytest.fixture
def log(small_images: Path, here: Path, monkeypatch: pytest.MonkeyPatch):
    """Trains, and returns the lines of the run's log about a reference. The first run has written one."""
    monkeypatch.setattr(on_track, "CONF", here / "conf")

    def trained(name: str, *overrides: str) -> list[str]:
        train_here(*SMALL, f"data.root={small_images}", f"name={name}", "monitor.every=0", *overrides)
        lines = (here / f"outputs/{name}/train.log").read_text().splitlines()
        return [line for line in lines if "reference" in line]

    assert trained("first") == []
    (here / "conf/experiment").mkdir(parents=True)
    write_reference(here / "conf/experiment/small.json", [Course.of(here / "outputs/first")])
    return trained


def test_a_run_says_where_it_stands_after_each_validation(log, here):
    lines = log("again")
    assert len(lines) == 2 and all(part in lines[0] for part in SAID)
    assert "INFO on track: after epoch 2 of 2" in lines[1]  # the same seed: the same accuracy
    whole = (here / "outputs/again/train.log").read_text().splitlines()
    assert [i + 1 for i, line in enumerate(whole) if " top-1 " in line and "epoch 1/2" in line] == [
        whole.index(lines[0])
    ]


def test_a_run_that_resumes_knows_its_first_validations(log, here):
    lines = log("half", "seed=1", "max_steps=10") + log("half", "seed=1")
    # After the resume, the log holds both parts.
    assert [("epoch 1 of 2" in line, "epoch 2 of 2" in line) for line in lines[1:]] == [(True, False), (False, True)]


@pytest.mark.parametrize("other", ["epochs=1", "optim.lr=0.001", "data.subset=0.5"])
def test_a_run_of_another_recipe_is_not_compared(other, log):
    assert log("other", other) == []


def test_a_damaged_reference_costs_a_warning(log, here):
    (here / "conf/experiment/a.json").write_text("{")
    lines = log("again")
    assert "a.json cannot be used" in lines[0] and "WARNING" in lines[0] and "the run continues without it" in lines[0]
    assert len(lines) == 3  # the other reference is used
