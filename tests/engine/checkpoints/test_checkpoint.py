"""A thread writes each checkpoint once. Whatever happens meanwhile, the files are complete and hold what was saved."""

import errno
import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from data import DataConfig, open_split
from engine.checkpoints.checkpoint import Checkpoints
from engine.checkpoints.checkpoint_file import load_checkpoint
from engine.checkpoints.snapshot import snapshot
from engine.errors import UserError
from engine.loop import TrainLoop
from tests.devices import on_devices
from tests.runs import SMALL, TORCHRUN, checkpoint, command, environment, metrics, reached, same_tensors, train_here

STATE = {"model": {}, "config": {}, "callbacks": {}, "best": None, "validated": 0}
FULL = "the checkpoint of step {} could not be saved in .* \\({}\\): free space and run the same command again"


class SlowFile(io.FileIO):
    """A file on a slow disk. torch writes each tensor by a few calls."""

    seconds = 0.02

    def write(self, data) -> int:
        time.sleep(self.seconds)
        return super().write(data)


class StuckFile(io.FileIO):
    """A file on a disk that does not answer after some kilobytes."""

    def write(self, data) -> int:
        if self.tell() > 10000:
            time.sleep(600)
        return super().write(data)


def on_a_slow_disk(*arguments: str, kind: type[io.FileIO] = SlowFile) -> list[str]:
    """The command of a run whose checkpoints take seconds to write."""
    code = (
        "import runpy, engine.checkpoints.checkpoint, tests.engine.checkpoints.test_checkpoint as t; "
        f"engine.checkpoints.checkpoint.open = t.{kind.__name__}; runpy.run_path('train.py', run_name='__main__')"
    )
    return [sys.executable, "-c", code, *command("train.py", *arguments)[2:]]


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints of this process take a second to write, or longer."""
    monkeypatch.setattr("engine.checkpoints.checkpoint.open", SlowFile, raising=False)


def test_the_state_is_that_of_the_call(tmp_path: Path, slow_disk: None) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    weights, note = torch.arange(1000.0), {"seen": [1]}
    for step in (1, 2):
        checkpoints.save(STATE | {"step": step, "model": {"w": weights}, "callbacks": {"a": note}}, is_best=step == 1)
        weights += 1
        note["seen"].append(step)
    checkpoints.wait()
    for name, step in (("step_00000001.pt", 1), ("best.pt", 1), ("last.pt", 2)):
        state = load_checkpoint(tmp_path / name)
        assert state["step"] == step and torch.equal(state["model"]["w"], torch.arange(1000.0) + step - 1)
        assert state["callbacks"] == {"a": {"seen": [1, 1][:step]}}
    checkpoints.save(STATE | {"step": 2}, is_best=False)
    checkpoints.wait()
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == ["best.pt", "last.pt", "step_00000001.pt"], (
        "the same step once more is no older one"
    )


@on_devices
def test_a_snapshot_has_the_values_layouts_and_versions_of_its_time(device: str) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)).to(device)
    model = model.to(memory_format=torch.channels_last)
    state = model.state_dict()
    before = {name: value.cpu().clone() for name, value in state.items()}
    copied = snapshot({"model": state, "nested": [{"all": (state["0.weight"], 3)}]})
    with torch.no_grad():
        for value in state.values():
            value.add_(1)
    assert same_tensors(before, copied["model"]) and torch.equal(copied["nested"][0]["all"][0], before["0.weight"])
    assert all(value.device.type == "cpu" for value in copied["model"].values())
    assert copied["model"]["0.weight"].stride() == state["0.weight"].stride()
    assert copied["model"]._metadata == state._metadata


def test_a_validation_belongs_to_one_file(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    found = {"best": {"step": 2, "top1": 5.0}, "validated": 2, "callbacks": {"mine": {3: (1, 2)}}}
    checkpoints.save(STATE | {"step": 2}, is_best=False)
    assert checkpoints.is_last(2) and not checkpoints.is_last(3)
    checkpoints.add_validation(found, is_best=True)
    for name in ("last.pt", "best.pt"):
        assert found.items() <= load_checkpoint(tmp_path / name).items()
    torch.save(load_checkpoint(tmp_path / "last.pt") | {"validated": 0}, tmp_path / "changed.pt")
    assert load_checkpoint(tmp_path / "changed.pt")["validated"] == 0
    (tmp_path / "last.validation").write_bytes(b"damaged")
    assert load_checkpoint(tmp_path / "best.pt")["validated"] == 0
    checkpoints.save(STATE | {"step": 4}, is_best=False)
    checkpoints.wait()
    assert not (tmp_path / "last.validation").exists()


def test_writing_changes_no_complete_file(tmp_path: Path) -> None:
    """A kill may leave the temporary name as a link to last.pt; so does a second validation of the best checkpoint."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(STATE | {"step": 2}, is_best=True)
    checkpoints.wait()
    before = (tmp_path / "last.pt").read_bytes()
    for _ in range(2):
        os.link(tmp_path / "last.pt", tmp_path / ".saving.tmp")
        checkpoints.add_validation({"validated": 2}, is_best=True)
        assert (tmp_path / "last.pt").read_bytes() == (tmp_path / "best.pt").read_bytes() == before
    os.link(tmp_path / "last.pt", tmp_path / ".saving.tmp")
    checkpoints.save(STATE | {"step": 4}, is_best=False)
    checkpoints.wait()
    assert (tmp_path / "step_00000002.pt").read_bytes() == before


def test_a_file_gets_its_name_after_it_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut at any moment leaves complete files: each is synced, then renamed, and then its folder is synced."""
    done: list[tuple[str, object]] = []
    sync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        done.append(("sync", os.fstat(descriptor).st_ino))
        sync(descriptor)

    def renamed(source: Path, target: Path) -> None:
        done.append((target.name, os.stat(source).st_ino))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    checkpoints = Checkpoints(tmp_path, keep=1)
    folder = ("sync", os.stat(tmp_path).st_ino)
    calls = [lambda: checkpoints.save(STATE | {"step": 1}, is_best=True), lambda: checkpoints.add_validation({}, False)]
    for call, name in zip(calls, ("last.pt", "last.validation"), strict=True):
        done.clear()
        call()
        checkpoints.wait()
        file = os.stat(tmp_path / name).st_ino
        assert done[:2] == [("sync", file), (name, file)] and done[-1] == folder


def test_a_failure_is_raised_at_every_later_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path / "folder", keep=1)
    (tmp_path / "folder").touch()
    checkpoints.save(STATE | {"step": 2}, is_best=False)
    calls: list[Callable[[], object]] = [checkpoints.wait, checkpoints.raise_if_failed, lambda: checkpoints.is_last(2)]
    calls += [lambda: checkpoints.save(STATE, False), lambda: checkpoints.set_aside(3, tmp_path / "aside.pt")]
    for call in calls:
        with pytest.raises(UserError, match=FULL.format(2, "File exists")):
            call()


@pytest.mark.slow
def test_an_epoch_is_written_once_while_steps_go_on(small_images: Path, here: Path, slow_disk: None, monkeypatch):
    sizes: list[int] = []
    real_sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (sizes.append(os.fstat(fd).st_size), real_sync(fd)))
    during: list[int] = []
    real_step = TrainLoop._after_step

    def after_step(self: TrainLoop) -> None:
        if Path("outputs/a/checkpoints/.saving.tmp").exists():
            during.append(self.done)
        real_step(self)

    monkeypatch.setattr(TrainLoop, "_after_step", after_step)
    monkeypatch.setattr(SlowFile, "seconds", 0.005)
    train_here(*SMALL, f"data.root={small_images}", "name=a", "checkpoint.every_steps=4", "epochs=1")
    assert during, "steps were taken while a file was written"
    whole = Path("outputs/a/checkpoints/last.pt").stat().st_size
    assert sum(size > whole / 2 for size in sizes) == 3  # steps 4, 8 and 10
    assert checkpoint(here / "outputs/a")["validated"] == 10 and checkpoint(here / "outputs/a", "best.pt")["step"] == 10


def test_a_disk_that_fills_up_ends_the_run_at_the_next_step(small_images: Path, here: Path, monkeypatch) -> None:
    def sync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    common = (*SMALL, f"data.root={small_images}", "name=a", "checkpoint.every_steps=2", "epochs=4", "eval_every=4")
    for split in ("train", "val"):
        open_split(DataConfig(name="folder", root=str(small_images)), split)  # so that their index is written already
    with monkeypatch.context() as patch, pytest.raises(UserError, match=FULL.format(2, "No space left on device")):
        patch.setattr(os, "fsync", sync)
        train_here(*common)
    assert 2 <= metrics(here / "outputs/a", "train")[-1]["step"] <= 4
    assert not list((here / "outputs/a/checkpoints").iterdir())
    train_here(*common, "max_steps=2")
    assert checkpoint(here / "outputs/a")["step"] == 2


@pytest.mark.slow
def test_a_kill_while_a_file_is_written_leaves_the_one_before(small_images: Path, here: Path, set_threads) -> None:
    """The resumed run ends with the weights of one that was not killed, bit for bit."""
    set_threads(1)
    common = (*SMALL, f"data.root={small_images}", "epochs=1", "ema=0.9")
    train_here(*common, "name=whole")
    train_here(*common, "name=a", "max_steps=3")
    folder = here / "outputs/a/checkpoints"
    own = ("name=a", "checkpoint.every_steps=6", f"output_dir={here / 'outputs/a'}")
    slow = on_a_slow_disk(*common, *own, kind=StuckFile)
    process = subprocess.Popen(slow, cwd=command("train.py")[1].removesuffix("/train.py"), env=environment())
    scratch = folder / ".saving.tmp"
    while process.poll() is None and not (scratch.exists() and scratch.stat().st_size > 10000):
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -9
    assert 10000 < scratch.stat().st_size < (folder / "last.pt").stat().st_size, "it was killed while writing"
    assert checkpoint(here / "outputs/a")["step"] == 3
    train_here(*common, "name=a")
    a, b = checkpoint(here / "outputs/whole"), checkpoint(here / "outputs/a")
    assert a["step"] == b["step"] == 10
    assert same_tensors(a["model"], b["model"]) and same_tensors(a["ema"], b["ema"])
    assert not scratch.exists()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_stop_waits_for_the_file(processes: int, small_images: Path, here: Path) -> None:
    common = (*SMALL, f"data.root={small_images}", "name=a", "epochs=90", "eval_every=90", "checkpoint.every_epochs=90")
    slow = on_a_slow_disk(*common, f"output_dir={here / 'outputs/a'}")
    if processes == 2:
        script = here / "slow.py"
        script.write_text(slow[2].replace("'train.py'", repr(command("train.py")[1])))
        slow = [*TORCHRUN, "--nproc-per-node=2", str(script), *slow[3:]]
    where = command("train.py")[1].removesuffix("/train.py")
    process = subprocess.Popen(slow, cwd=where, env=environment(PYTHONPATH=where), stderr=subprocess.PIPE, text=True)
    while process.poll() is None and reached(here / "outputs/a") < 3:
        time.sleep(0.05)
    process.terminate()
    _, said = process.communicate()
    step = checkpoint(here / "outputs/a")["step"]
    assert step >= 2
    if processes == 1:
        assert process.returncode == 143 and f"stopped by a signal after step {step}, which is saved" in said


@pytest.mark.slow
def test_an_error_waits_for_the_file(small_images: Path, here: Path, slow_disk: None, monkeypatch) -> None:
    """The error comes in the validation, while the checkpoint of the epoch is being written."""

    def fail(*_: object) -> None:
        assert not list(Path("outputs/a/checkpoints").glob("*.pt"))
        raise ValueError("in the validation")

    monkeypatch.setattr("engine.loop.score", fail)
    with pytest.raises(ValueError, match="in the validation"):
        train_here(*SMALL, f"data.root={small_images}", "name=a", "max_steps=2")
    assert checkpoint(here / "outputs/a")["step"] == 2


def can_mount() -> bool:
    try:
        mount = ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"]
        return os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="only the superuser may mount a small or read-only disk")
@pytest.mark.parametrize(
    ("options", "later", "why"),
    [
        ("size=900k", "true", "No space left on device"),
        ("size=90m", "until mount -o remount,ro {}; do sleep 0.1; done", "Read-only file system"),
    ],
)
def test_a_full_and_a_read_only_disk_end_a_run_in_one_line(options, later, why, small_images, here) -> None:
    """On a real disk, which becomes read-only after the first checkpoint."""
    disk = here / "outputs/a/checkpoints"
    disk.mkdir(parents=True)
    common = (*SMALL, f"data.root={small_images}", "name=a", "checkpoint.every_steps=4", "epochs=40")
    waits = f"while [ ! -e {disk}/last.pt ]; do sleep 0.1; done; {later.format(disk)}"
    script = f'mount -t tmpfs -o {options} none {disk}; ({waits}) & exec "$@"'
    out = subprocess.run(
        ["unshare", "-m", "bash", "-c", script, "bash", *command("train.py", *common)],
        cwd=here,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert out.returncode == 2, out.stderr
    assert re.search("error: " + FULL.format(r"\d+", why), out.stderr) and "Traceback" not in out.stderr
