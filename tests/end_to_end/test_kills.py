"""Runs stopped by a signal: nothing is lost, and they go on as if nothing had happened."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
import torch

from data.backends.workers import clean_start
from engine.step import StepOutcome, TrainStep
from engine.training_batches import TrainBatch
from optim.schedules import SCHEDULES
from tests.runs import (
    ALL_AUGMENTATION,
    NEVER_SAVED,
    PROJECT,
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
from tests.wandb_runs import records


def kill_in_mid_epoch(
    arguments: tuple[str, ...], folder: Path, here: Path, step: int, number: int, with_children: bool = False
) -> int:
    """Start a run, and send it, or also its children, a signal once it has logged a certain step."""
    process = subprocess.Popen(
        command("train.py", *arguments), cwd=here, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    while process.poll() is None and reached(folder) < step:
        time.sleep(0.01)
    for pid in (process.pid, *(descendants(process.pid) if with_children else ())):
        with suppress(ProcessLookupError):  # a child may have ended meanwhile
            os.kill(pid, number)
    process.communicate()
    return process.returncode


def descendants(pid: int) -> list[int]:
    """The processes that a process started, and those that they started."""
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:  # it has ended
        return []
    return [*children, *(later for child in children for later in descendants(child))]


def train_until_killed(last: int, *arguments: str) -> None:
    """Train in a process of its own, in one thread. It waits after step ``last`` if it still lives then."""
    torch.set_num_threads(1)
    take = TrainStep.take

    def take_or_wait(self: TrainStep, step: int, batches: Iterator[TrainBatch]) -> StepOutcome:
        if step > last:
            time.sleep(600)
        return take(self, step, batches)

    TrainStep.take = take_or_wait  # type: ignore[method-assign]
    train_here(*arguments)


def start_and_kill(arguments: tuple[str, ...], folder: Path, step: int) -> None:
    """Start a run, and kill it once it has logged a step, and before it has taken seven more.

    It starts as a fork of a process that has only imported the modules, which saves their import. A fork of this
    process would share locks with it, such as that of progress bars: killed while it holds one, it keeps it for ever.
    """
    child = clean_start([__name__]).Process(target=train_until_killed, args=(step + 7, *arguments))
    child.start()
    while child.is_alive() and reached(folder) < step:
        time.sleep(0.01)
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL


def assert_kills_change_nothing(common: tuple[str, ...], here: Path, steps: int = 30, kills: Sequence[int] = (15,)):
    """Train for a number of steps, and again with SIGKILL at some of them. Both agree bit for bit."""
    common = (*common, "checkpoint.every_steps=4")
    train_here(*common, "name=whole")
    folder = here / "outputs/killed"
    for step in kills:
        start_and_kill((*common, "name=killed"), folder, step)
        saved = checkpoint(folder)["step"]
        assert step - 8 < saved < steps, (
            "lost: steps since the last save, or since the one before if the last was unfinished"
        )
    again = run_here("train.py", *common, "name=killed", cwd=here)
    assert again.returncode == 0, again.stderr
    assert f"continuing from step {saved}" in again.stdout
    a, b = checkpoint(here / "outputs/whole"), checkpoint(folder)
    assert a["step"] == b["step"] == steps
    assert same_tensors(a["model"], b["model"])
    assert (a["ema"] is None and b["ema"] is None) or same_tensors(a["ema"], b["ema"])
    for split, keys in (("train", ("step", "loss", "lr", "step_ratio_max")), ("val", ("step", "loss", "top1"))):
        for line, twin in zip(metrics(here / "outputs/whole", split), metrics(folder, split), strict=True):
            assert [line.get(key) for key in keys] == [twin.get(key) for key in keys], "cut back and written again"


KILLS = int(os.environ.get("TEST_KILLS", 1))
QUICKSTART = (
    *("experiment=quickstart", "seed=1", "data.backend=torch", "max_workers=0"),
    *("log_every=1", "logger=none", "device=cpu"),
)


@pytest.mark.slow
@pytest.mark.timeout(1800 + 60 * KILLS)
def test_a_killed_run_ends_with_the_same_weights(small_images, here, set_threads):
    """``TEST_KILLS=100`` kills the whole quickstart as often, at random steps."""
    set_threads(1)
    if KILLS == 1:
        small = (*SMALL, *ALL_AUGMENTATION, f"data.root={small_images}", "epochs=3")
        return assert_kills_change_nothing(small, here)
    steps = 9 * 156  # epochs and steps of an epoch
    kills = sorted(Random(0).sample(range(8, steps - 8), KILLS))
    return assert_kills_change_nothing(QUICKSTART, here, steps, kills)


# Every optimizer and every schedule.
KILLED = (
    ("adamw2", "trapezoid", "schedule.decay_epochs=1.6"),
    ("adamw", "linear", "schedule.warmup_epochs=0.5"),
    ("sgd", "step", "schedule.step_epochs=1"),
    ("lion", "constant", "schedule.warmup_epochs=1.8"),
    ("lamb", "inverse_sqrt", "schedule.timescale_epochs=1"),
    ("muon", "cosine", "schedule.cooldown_epochs=1"),
    ("radam", "cosine", "optim.layer_decay=0.8"),
    ("adamuon", "constant", "optim.weight_cap=1.5"),
    ("nadamuon", "linear", "loss=bce"),
    ("lamb_vit5", "cosine", "schedule.warmup_epochs=0.5"),
)


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "schedule", "shape"), KILLED)
def test_a_kill_changes_nothing_under_any_optimizer_or_schedule(
    optimizer, schedule, shape, small_images, here, set_threads
):
    set_threads(1)
    chosen = (f"optim={optimizer}", "optim.lr=1e-3", f"schedule={schedule}", shape)
    assert_kills_change_nothing((*SMALL, f"data.root={small_images}", "epochs=3", *chosen), here)


def test_those_are_all_optimizers_and_schedules():
    assert {pair[0] for pair in KILLED} == {file.stem for file in (PROJECT / "conf/optim").glob("*.yaml")}
    assert {pair[1] for pair in KILLED} == set(SCHEDULES)


def test_a_sigterm_saves_and_the_run_goes_on(small_images, here):
    common = (*SMALL, f"data.root={small_images}", "epochs=99", "eval_every=99", "name=a", "checkpoint.every_epochs=99")
    folder = here / "outputs/a"
    assert kill_in_mid_epoch(common, folder, here, 5, signal.SIGTERM) == 128 + signal.SIGTERM
    state = checkpoint(folder)
    assert state["step"] >= 5
    again = run_here("train.py", *common, f"max_steps={state['step'] + 2}", cwd=here)
    assert again.returncode == 0, again.stderr
    assert checkpoint(folder)["step"] == state["step"] + 2


def test_another_signal_saves_too(small_images, here, monkeypatch):
    """SLURM sends SIGUSR1 before the time limit (``scripts/slurm/train.sbatch``). Here the run sends it to itself."""
    take = TrainStep.take

    def signalled(self, step, batches):
        if step == 5:
            os.kill(os.getpid(), signal.SIGUSR1)
        return take(self, step, batches)

    monkeypatch.setattr(TrainStep, "take", signalled)
    done = run_here("train.py", *SMALL, *NEVER_SAVED, f"data.root={small_images}", "name=a", cwd=here)
    assert done.returncode == 128 + signal.SIGUSR1, done.stderr
    assert "stopped by a signal after step 5, which is saved" in done.stderr
    assert checkpoint(here / "outputs/a")["step"] == 5


@pytest.mark.slow
def test_torchrun_stopped_by_sigterm_has_saved(small_images, here):
    common = (*SMALL, f"data.root={small_images}", "epochs=99", "eval_every=99", "name=a", "checkpoint.every_epochs=99")
    process = subprocess.Popen(
        command("train.py", *common, processes=2), cwd=here, env=environment(), stdout=subprocess.DEVNULL
    )
    folder = here / "outputs/a"
    while process.poll() is None and reached(folder) < 1:  # both processes note signals only in the training loop
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    process.wait()
    assert checkpoint(folder)["step"] >= 1


def wandb_steps(folder: Path, split: str = "train") -> list[int]:
    """The steps of all lines of a kind that W&B's offline files of a run hold together, in the order of the steps."""
    found = []
    for path in folder.glob("wandb/offline-run-*/run-*.wandb"):
        for record in records(path):
            row = {item.nested_key[0]: item.value_json for item in record.history.item}
            found += [int(row["step"])] if f"{split}/epoch" in row else []
    return sorted(found)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_w_and_b_has_every_step_once_after_a_signal_to_its_service_too(number, small_images, here):
    """``scancel`` sends its signals to all processes of a job."""
    common = (*SMALL, f"data.root={small_images}", "name=a", "logger=wandb", "monitor.every=3", "epochs=99")
    common = (*common, "eval_every=2", "checkpoint.every_epochs=99", "checkpoint.every_steps=8")
    folder = here / "outputs/a"
    code = kill_in_mid_epoch(common, folder, here, 20, number, with_children=True)
    assert code == (128 + signal.SIGTERM if number == signal.SIGTERM else -signal.SIGKILL)
    if number == signal.SIGTERM:
        assert wandb_steps(folder) == [line["step"] for line in metrics(folder, "train")], "no resume is needed"
    again = run("train.py", *common, f"max_steps={checkpoint(folder)['step'] + 5}", cwd=here)
    assert again.returncode == 0, again.stderr
    assert len(list(folder.glob("wandb/offline-run-*"))) > 1
    for split in ("train", "val", "stability"):
        assert wandb_steps(folder, split) == [line["step"] for line in metrics(folder, split)], split
    assert wandb_steps(folder, "stability")
