"""Events that end a run, and what is saved before that."""

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from data import DataError
from engine.errors import UserError
from engine.loop import TrainLoop
from engine.processes.distributed import World
from engine.step import TrainStep
from tests.runs import (
    ALL_AUGMENTATION,
    NEVER_SAVED,
    SMALL,
    checkpoint,
    command,
    environment,
    metrics,
    reached,
    run,
    run_here,
    same_tensors,
    train_here,
)

WITH_BATCH_NORM = (
    *("model=deit_small_convstem", "model.patch_size=4", "model.embed_dim=16", "model.depth=2", "model.num_heads=2"),
    *("model.stem_width=8", "data=folder", "data.crop=28", "data.resize=28", "data.backend=torch", "max_workers=0"),
    *("device=cpu", "amp=fp32", "batch_size=32", "micro_batch_size=16", "augment.mix_group=8", "augment.repeats=1"),
    *("optim.lr=1e-3", "log_every=1", "logger=none", "epochs=2"),
)


@pytest.fixture
def with_a_bad_image(small_images, here, monkeypatch):
    """A folder of images, and a function that damages an image which step 7 is the first to read."""
    images = shutil.copytree(small_images, here / "images")

    def damage(*common: str) -> tuple[Path, bytes]:
        order: list[list[str]] = []
        real = TrainLoop._step

        def note(self, *given):
            data = self.run.data
            order.append([data.train_set.source.name(int(row)) for row in data.plan.images_of(self.done)])
            real(self, *given)

        with monkeypatch.context() as patch:
            patch.setattr(TrainLoop, "_step", note)
            train_here(*common, f"data.root={images}", "output_dir=whole")
        before = {name for names in order[:6] for name in names}
        bad = next(Path(name) for name in order[6][::-1] if name not in before)
        whole = bad.read_bytes()
        bad.write_bytes(whole[:300])
        return bad, whole

    return images, damage


@pytest.mark.parametrize(
    "options",
    [(*SMALL, *ALL_AUGMENTATION), pytest.param(WITH_BATCH_NORM, marks=pytest.mark.slow)],
    ids=["all_augmentation", "batch_norm"],
)
def test_an_unreadable_image_costs_no_step(options, with_a_bad_image, here):
    """The steps before it are saved. After a repair of the image, the run ends with the weights of an undamaged run."""
    images, damage = with_a_bad_image
    common = (*options, *NEVER_SAVED, "name=a", "max_steps=10")
    bad, whole = damage(*common)
    with pytest.raises(DataError, match=re.escape(bad.name)):
        train_here(*common, f"data.root={images}", "output_dir=part")
    assert checkpoint(here / "part")["step"] == 6
    shutil.copytree(here / "part", here / "skipping")
    train_here(*common, f"data.root={images}", "output_dir=skipping", "data.on_bad_image=skip")
    assert checkpoint(here / "skipping")["step"] == 10
    bad.write_bytes(whole)
    train_here(*common, f"data.root={images}", "output_dir=part")
    a, b = checkpoint(here / "whole"), checkpoint(here / "part")
    assert a["step"] == b["step"] == 10
    assert same_tensors(a["model"], b["model"])
    assert a["ema"] is None or same_tensors(a["ema"], b["ema"])


def test_steps_before_an_early_end_are_in_the_metrics(small_images, here, monkeypatch):
    common = (*SMALL, *NEVER_SAVED, f"data.root={small_images}", "max_steps=9")
    train_here(*common, "name=whole")
    real = TrainStep.take

    def take(self, number, batches):
        if number == 7:
            raise OSError("a disk is gone")
        return real(self, number, batches)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="a disk is gone"):
        patch.setattr(TrainStep, "take", take)
        train_here(*common, "name=a", "log_every=4")
    whole = {line["step"]: line["loss"] for line in metrics(here / "outputs/whole", "train")}
    lines = [(line["step"], line["loss"]) for line in metrics(here / "outputs/a", "train")]
    assert lines == [(1, whole[1]), (4, (whole[2] + whole[3] + whole[4]) / 3), (6, (whole[5] + whole[6]) / 2)]


def test_weights_in_the_middle_of_an_update_are_not_saved(small_images, here, monkeypatch, capsys):
    """An error in the optimizer leaves some weights changed and others unchanged."""
    real, calls = torch.amp.GradScaler.step, []

    def step(self, optimizer, *args):
        calls.append(1)
        if len(calls) == 4:
            raise MemoryError("out of memory")
        return real(self, optimizer, *args)

    monkeypatch.setattr(torch.amp.GradScaler, "step", step)
    with pytest.raises(MemoryError):
        train_here(*SMALL, *NEVER_SAVED, f"data.root={small_images}", "name=a", "max_steps=9")
    assert not list((here / "outputs/a/checkpoints").glob("*.pt"))
    assert "in the middle of an update" in capsys.readouterr().out


def test_a_loss_that_is_not_finite_is_not_saved(small_images, here, monkeypatch):
    """Also not if an error ends the run before the loss is checked."""
    real = TrainStep.take

    def take(self, number, batches):
        if number == 4:
            raise OSError("a disk is gone")
        if number == 3:
            with torch.no_grad():
                self.parameters[0].fill_(float("nan"))
        return real(self, number, batches)

    monkeypatch.setattr(TrainStep, "take", take)
    with pytest.raises(OSError, match="a disk is gone"):
        train_here(*SMALL, *NEVER_SAVED, f"data.root={small_images}", "name=a", "max_steps=9", "log_every=99")
    assert not list((here / "outputs/a/checkpoints").glob("*.pt"))


def test_instruments_and_pictures_may_fail(small_images, here, monkeypatch, capsys):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("stability.monitor.StabilityMonitor._probe", fail)
    monkeypatch.setattr("engine.callbacks.pictures.draw_batch", fail)
    monkeypatch.setattr("engine.callbacks.pictures.draw_curves", fail)
    train_here(*SMALL, f"data.root={small_images}", "name=a", "max_steps=4", "monitor.every=2", draws=True)
    said = capsys.readouterr().out
    assert said.count("the instruments cannot be read (CUDA out of memory): the run continues") == 1
    assert "batch.png cannot be drawn" in said and "curves.png cannot be drawn" in said
    assert checkpoint(here / "outputs/a")["step"] == 4


def catches_sigterm(pid: int) -> bool:
    """Whether a process handles SIGTERM: it then is in its training loop, and saves before it stops."""
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(re.findall(r"SigCgt:\s*(\w+)", status)[0], 16) & 1 << (signal.SIGTERM - 1))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_sigterm_ends_a_wait_for_data_that_never_comes(workers, small_images, here):
    """Named pipes instead of images act like a file server that does not answer."""
    images = shutil.copytree(small_images, here / "images")
    common = (*SMALL, *NEVER_SAVED, f"data.root={images}", "name=a", "epochs=1", f"max_workers={workers}")
    train_here(*common, "output_dir=first", "max_steps=1", "max_workers=0")
    for image in sorted((images / "train").glob("*/*.png"))[1::2]:
        before = image.parent.stat()
        image.unlink()
        os.mkfifo(image)
        os.utime(image.parent, ns=(before.st_atime_ns, before.st_mtime_ns))  # so that the index stays current
    process = subprocess.Popen(
        command("train.py", *common, "data.on_bad_image=error"),
        cwd=here,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not catches_sigterm(process.pid):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=250)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "Traceback" not in errors and "stopped by a signal" in errors


@pytest.mark.slow
@pytest.mark.parametrize("sink", ["> /dev/full", "2>&1 | head -n 2"])
def test_a_console_that_cannot_be_written_ends_no_run(sink, small_images, here):
    start = " ".join(f"'{part}'" for part in command("train.py", *SMALL, f"data.root={small_images}", "name=a"))
    out = subprocess.run(
        ["bash", "-c", f"{start} max_steps=4 {sink}; exit ${{PIPESTATUS[0]}}"],
        cwd=here,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert out.returncode == 0, out.stderr
    assert "Traceback" not in out.stderr
    assert checkpoint(here / "outputs/a")["step"] == 4
    log = (here / "outputs/a/train.log").read_text()
    assert log.count("the console cannot be written") == 1 and "top-1" in log


@pytest.mark.slow
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_process_without_a_console_trains(closed, small_images, here):
    start = " ".join(f"'{part}'" for part in command("train.py", *SMALL, f"data.root={small_images}", "name=a"))
    out = subprocess.run(["bash", "-c", f"{start} max_steps=2 {closed}"], cwd=here, env=environment(), timeout=250)
    assert out.returncode == 0
    assert checkpoint(here / "outputs/a")["step"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("start", [[], ["nohup"]])
def test_a_closed_terminal_saves_first_and_nohup_goes_on(start, small_images, here):
    epochs = 12 if start else 90  # each of ten steps
    common = (*SMALL, *NEVER_SAVED, f"data.root={small_images}", "name=a", f"epochs={epochs}")
    child, terminal = pty.fork()
    if child == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
        os.chdir(here)
        os.execvpe((start or [command("train.py")[0]])[0], [*start, *command("train.py", *common)], environment())
    while reached(here / "outputs/a") < 3:
        with suppress(OSError):  # with nohup, output goes to a file, and nothing keeps the terminal open
            if select.select([terminal], [], [], 0.1)[0]:
                os.read(terminal, 10000)  # else its buffer would fill up
        time.sleep(0.01)
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    last = checkpoint(here / "outputs/a")["step"]
    log_said = (here / "outputs/a/train.log").read_text()
    if start:
        assert (code, last) == (0, 10 * epochs), log_said
    else:
        assert code == 128 + signal.SIGHUP and 2 < last < 10 * epochs, log_said


@pytest.mark.slow
def test_one_run_of_a_sweep_that_fails_ends_no_other(small_images, here):
    common = (*SMALL, f"data.root={small_images}", "optim.clip=null", "max_steps=4", "monitor.history=0")
    out = run_here("train.py", "-m", *common, "optim.lr=1e30,1e-4", "optim.min_lr=0", "name=a", cwd=here)
    assert out.returncode == 1
    assert "not finite at step" in out.stderr
    assert "1 of the runs failed: optim.lr=1e+30" in out.stderr
    assert checkpoint(here / "outputs/a-optim.lr_0.0001")["step"] == 4


@pytest.mark.parametrize(
    "variables", [{"RANK": "1"}, {"RANK": "0", "WORLD_SIZE": "2"}, {"LOCAL_RANK": "3"}, {"LOCAL_WORLD_SIZE": "2"}]
)
def test_half_an_environment_is_refused(variables, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="start with torchrun, or unset them"):
        World.from_environment()


def test_a_loss_that_is_not_finite_stops_the_run(small_images, here):
    common = (*SMALL, f"data.root={small_images}", "name=a", "checkpoint.every_steps=1")
    train_here(*common, "max_steps=2")
    poisoned = checkpoint(here / "outputs/a")
    poisoned["stepper"]["optimizer"]["param_groups"][0]["weight_decay"] = float("nan")
    torch.save(poisoned, here / "outputs/a/checkpoints/last.pt")
    out = run_here("train.py", *common, "log_every=5", "checkpoint.every_steps=5", cwd=here)
    assert out.returncode == 1
    assert re.search(r"error: the loss or gradient was not finite at step 4: .*step 2", out.stderr), out.stderr
    assert "Traceback" not in out.stderr
    kept = checkpoint(here / "outputs/a")
    assert kept["step"] == 2 and all(torch.isfinite(v).all() for v in kept["model"].values())


@pytest.mark.slow
def test_a_bad_image_found_in_one_process_is_named(small_images, here):
    images = shutil.copytree(small_images, here / "images")
    common = (*SMALL, f"data.root={images}", "name=a", "epochs=1")
    train_here(*common, "max_steps=1")
    for bad in sorted((images / "train").glob("*/*.png"))[:3]:
        bad.write_bytes(bad.read_bytes()[:300])
    shutil.rmtree(here / "outputs")
    out = run("train.py", *common, cwd=here, processes=2)
    assert out.returncode != 0
    assert re.search(r"error: .*\.png cannot be decoded .* replace it with a readable image", out.stderr), out.stderr
