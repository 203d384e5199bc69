"""Which checkpoints there are: when they are saved, which one is the last, and what a validation belongs to."""

import os
from pathlib import Path

import pytest
import torch

from engine.checkpoints.checkpoint import Checkpoints
from engine.checkpoints.checkpoint_file import load_checkpoint
from engine.loop import TrainLoop
from tests.runs import SMALL, train_here

STATE = {"model": {}, "config": {}, "callbacks": {}, "best": None, "validated": 0}


def test_a_validation_is_not_that_of_a_file_of_the_same_size(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(STATE | {"step": 2, "model": {"w": torch.zeros(9)}}, is_best=False)
    checkpoints.wait()
    checkpoints.add_validation({"validated": 2}, is_best=False)
    checkpoints.wait()
    other = Checkpoints(tmp_path / "other", keep=1)
    (tmp_path / "other").mkdir()
    other.save(STATE | {"step": 2, "model": {"w": torch.ones(9)}}, is_best=False)
    other.wait()
    assert (tmp_path / "other/last.pt").stat().st_size == (tmp_path / "last.pt").stat().st_size
    assert load_checkpoint(tmp_path / "last.pt")["validated"] == 2
    os.replace(tmp_path / "other/last.pt", tmp_path / "last.pt")
    assert load_checkpoint(tmp_path / "last.pt")["validated"] == 0


def test_a_rewind_keeps_what_came_before_and_deletes_what_came_after(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=9)
    for step in (2, 4, 6, 8):
        checkpoints.save(STATE | {"step": step}, is_best=False)
    checkpoints.wait()
    checkpoints.rewind(tmp_path / "step_00000004.pt")
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == ["before_rewind.pt", "last.pt", "step_00000002.pt"]
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 4


def test_a_deleted_checkpoint_is_not_the_last_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(STATE | {"step": 2}, is_best=False)
    assert checkpoints.is_last(2)
    (tmp_path / "last.pt").unlink()
    assert not checkpoints.is_last(2)


def test_minutes_count_from_the_last_save(small_images: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that moves by 20 seconds a step: a save is due when more than a minute is over."""
    real, clock = TrainLoop._step, [0.0]

    def step(self: TrainLoop, *arguments) -> None:
        real(self, *arguments)
        clock[0] += 20.0

    monkeypatch.setattr("engine.loop.time.monotonic", lambda: clock[0])
    monkeypatch.setattr(TrainLoop, "_step", step)
    minutes = ("checkpoint.every_minutes=1", "checkpoint.every_epochs=null", "checkpoint.keep=9")
    train_here(*SMALL, f"data.root={small_images}", "name=a", *minutes, "max_steps=10", "eval_every=9")
    saved = sorted(path.name for path in (here / "outputs/a/checkpoints").glob("step_*.pt"))
    assert saved == ["step_00000004.pt", "step_00000008.pt"]


def test_an_old_checkpoint_that_cannot_be_deleted_ends_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "step_00000001.pt").mkdir()
    checkpoints = Checkpoints(tmp_path, keep=0)
    checkpoints.save(STATE | {"step": 2}, is_best=False)
    checkpoints.wait()
    assert "step_00000001.pt is no longer needed but cannot be deleted" in caplog.text
    assert load_checkpoint(checkpoints.last)["step"] == 2
