"""Runs say after each validation where they stand, if there is a reference for exactly what they train."""

import contextlib
import shutil
from pathlib import Path

import pytest

from engine.callbacks import on_track
from scripts.common.course import Course, write_reference
from tests.runs import SMALL, train_here

SAID = (": after epoch 1 of 2 top-1 is ", "the reference had ", "(conf/experiment/small.json)")


@pytest.fixture(scope="module")
def reference(small_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference of a small run."""
    here = tmp_path_factory.mktemp("first")
    with contextlib.chdir(here):
        train_here(*SMALL, f"data.root={small_images}", "name=first", "monitor.every=0")
    assert "reference" not in (here / "outputs/first/train.log").read_text()
    write_reference(here / "small.json", [Course.of(here / "outputs/first")])
    return here / "small.json"


@pytest.fixture
def log(reference: Path, small_images: Path, here: Path, monkeypatch: pytest.MonkeyPatch):
    """Trains with the reference in ``conf/``, and returns the lines of the run's log about references."""
    monkeypatch.setattr(on_track, "CONF", here / "conf")
    (here / "conf/experiment").mkdir(parents=True)
    shutil.copy(reference, here / "conf/experiment")

    def trained(name: str, *overrides: str) -> list[str]:
        train_here(*SMALL, f"data.root={small_images}", f"name={name}", "monitor.every=0", *overrides)
        lines = (here / f"outputs/{name}/train.log").read_text().splitlines()
        return [line for line in lines if "reference" in line]

    return trained


def test_a_run_says_where_it_stands_after_each_validation(log, here):
    lines = log("again")
    assert len(lines) == 2 and all(part in lines[0] for part in SAID)
    assert "INFO on track: after epoch 2 of 2" in lines[1]  # the same seed: the same accuracy
    whole = (here / "outputs/again/train.log").read_text().splitlines()
    assert [i + 1 for i, line in enumerate(whole) if " top-1 " in line and "epoch 1/2" in line] == [
        whole.index(lines[0])
    ]


def test_a_run_that_resumes_compares_its_next_validation(log):
    assert len(log("half", "seed=1", "max_steps=10")) == 1
    _, second = log("half", "seed=1")  # the log holds both parts
    assert "after epoch 2 of 2" in second


@pytest.mark.parametrize("other", ["epochs=1", "optim.lr=0.001"])
def test_a_run_of_another_recipe_is_not_compared(other, log):
    assert log("other", other, "max_steps=10") == []


def test_a_damaged_reference_costs_a_warning(log, here):
    (here / "conf/experiment/a.json").write_text("{")
    lines = log("again", "max_steps=10")
    assert "a.json cannot be used" in lines[0] and "WARNING" in lines[0] and "the run continues without it" in lines[0]
    assert len(lines) == 2  # the other reference is used
