"""Which checkpoints there are: when they are saved, which one is the last, and what a validation belongs to."""

import errno
import io
import os
from pathlib import Path

import pytest
import torch

from engine.checkpoints.checkpoint import Checkpoints
from engine.checkpoints.checkpoint_file import load_checkpoint
from engine.errors import UserError
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


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def test_the_newest_are_kept_and_a_damaged_one_takes_no_place(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in range(1, 6):
        checkpoints.save(STATE | {"step": step}, is_best=step == 2)
    checkpoints.wait()
    kept = ["best.pt", "last.pt", "step_00000003.pt", "step_00000004.pt"]
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == kept
    damage(tmp_path / "last.pt")
    resumed = Checkpoints(tmp_path, keep=2)
    state = resumed.load_last()
    assert state is not None and state["step"] == 4
    resumed.save(STATE | {"step": 6}, is_best=False)
    resumed.wait()
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 6
    assert load_checkpoint(tmp_path / "step_00000004.pt")["step"] == 4, "the damaged file did not take its name"
    for name in ("last.pt", "step_00000003.pt", "step_00000004.pt"):
        damage(tmp_path / name)
    state = Checkpoints(tmp_path, keep=2).load_last()
    assert state is not None and state["step"] == 2, "best.pt"
    damage(tmp_path / "best.pt")
    with pytest.raises(UserError, match=r"none of the checkpoints in .* can be read: set another name"):
        Checkpoints(tmp_path, keep=2).load_last()


def test_a_checkpoint_that_cannot_be_opened_is_not_passed_over(tmp_path: Path) -> None:
    """It may be sound, and the next save would replace it."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step in (1, 2):
        checkpoints.save(STATE | {"step": step}, is_best=False)
    checkpoints.wait()
    sound = (tmp_path / "last.pt").rename(tmp_path / "sound")
    (tmp_path / "last.pt").symlink_to("last.pt")  # which nobody can open, not even root
    message = r"last\.pt cannot be opened \(Too many levels of symbolic links\): allow reading"
    with pytest.raises(UserError, match=message):
        Checkpoints(tmp_path, keep=1).load_last()
    sound.rename(tmp_path / "last.pt")
    (tmp_path / "best.pt").symlink_to("best.pt")  # it comes last, so nothing needs it
    state = Checkpoints(tmp_path, keep=1).load_last()
    assert state is not None and state["step"] == 2


def test_a_save_that_fails_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk, ``torch.save`` may raise a ``RuntimeError``."""

    def save(content: object, file: io.FileIO) -> None:
        file.write(b"begun")
        raise RuntimeError("unexpected pos 64 vs 1")

    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(STATE | {"step": 1}, is_best=False)
    checkpoints.wait()
    monkeypatch.setattr(torch, "save", save)
    checkpoints.save(STATE | {"step": 2}, is_best=False)
    with pytest.raises(UserError, match=r"step 2 could not be saved in .* \(unexpected pos .*\): free space and run"):
        checkpoints.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 1


@pytest.mark.parametrize("which", range(6))
@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_disk_that_fails_for_a_moment_costs_no_checkpoint(
    name: str, which: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the calls fails once, as on a disk of a network: those of two saves and of a validation."""
    real, calls = getattr(os, name), []

    def call(*given: object) -> None:
        calls.append(given)
        if len(calls) == which + 1:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        real(*given)

    monkeypatch.setattr(os, name, call)
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(STATE | {"step": 1}, is_best=True)
    checkpoints.save(STATE | {"step": 2}, is_best=False)
    checkpoints.wait()
    checkpoints.add_validation({"validated": 2}, is_best=True)
    found = {path.name: load_checkpoint(path)["step"] for path in tmp_path.glob("*.pt")}
    assert found == {"step_00000001.pt": 1, "last.pt": 2, "best.pt": 2}
    assert load_checkpoint(tmp_path / "last.pt")["validated"] == 2
    assert len(calls) > 6, "one of six has failed"


def test_a_file_system_without_hard_links_gets_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(STATE | {"step": 1}, is_best=True)
    assert checkpoints.set_aside(2, tmp_path / "aside.pt") == 1
    checkpoints.save(STATE | {"step": 2}, is_best=False)
    checkpoints.wait()
    assert [load_checkpoint(tmp_path / name)["step"] for name in ("best.pt", "aside.pt", "last.pt")] == [1, 1, 2]


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
