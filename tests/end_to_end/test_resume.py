"""All kinds of interruptions: a run continues exactly where it stopped, and nothing is lost."""

import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from engine.errors import UserError
from optim.schedules import SCHEDULES
from tests.runs import (
    ALL_AUGMENTATION,
    NO_LOCAL_NOISE,
    PROJECT,
    SMALL,
    TORCHRUN,
    checkpoint,
    command,
    environment,
    losses,
    metrics,
    run,
    run_here,
    same_tensors,
    train_here,
)


def kill_in_mid_epoch(arguments: tuple[str, ...], folder: Path, here: Path, step: int, number: int) -> int:
    """Start a run, and send it a signal once it has logged a certain step."""
    process = subprocess.Popen(
        command("train.py", *arguments), cwd=here, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    deadline = time.monotonic() + 120
    log = folder / "metrics.jsonl"
    while time.monotonic() < deadline and process.poll() is None:
        if log.is_file() and any(line["step"] >= step for line in metrics(folder, "train")):
            break
        time.sleep(0.01)
    process.send_signal(number)
    process.communicate(timeout=60)
    return process.returncode


def assert_a_kill_changes_nothing(common: tuple[str, ...], here: Path) -> None:
    """Run 30 steps, and again with SIGKILL in the middle of the second epoch and a resume. Both agree bit for bit."""
    common = (*common, "epochs=3", "checkpoint.every_steps=4")
    whole = run_here("train.py", *common, "name=whole", cwd=here)
    assert whole.returncode == 0, whole.stderr
    folder = here / "outputs/killed"
    code = kill_in_mid_epoch((*common, "name=killed"), folder, here, 15, signal.SIGKILL)
    assert code == -signal.SIGKILL
    reached = checkpoint(folder)["step"]
    assert 12 <= reached < 30 and checkpoint(folder)["step_in_epoch"] != 0
    again = run_here("train.py", *common, "name=killed", cwd=here)
    assert again.returncode == 0, again.stderr
    assert f"continuing from step {reached}" in again.stdout
    a, b = checkpoint(here / "outputs/whole"), checkpoint(folder)
    assert a["step"] == b["step"] == 30
    assert same_tensors(a["model"], b["model"])
    assert (a["ema"] is None and b["ema"] is None) or same_tensors(a["ema"], b["ema"])
    for line, twin in zip(metrics(here / "outputs/whole", "train"), metrics(folder, "train"), strict=True):
        keys = ("step", "loss", "lr", "step_ratio_max")
        assert [line.get(key) for key in keys] == [twin.get(key) for key in keys], "cut back and written again"


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_weights(small_images, here, set_threads):
    set_threads(1)
    assert_a_kill_changes_nothing((*SMALL, *ALL_AUGMENTATION, f"data.root={small_images}"), here)


# Every optimizer and every schedule.
KILLED = (
    ("adamw2", "trapezoid", "schedule.decay_epochs=1.6"),
    ("adamw", "linear", "schedule.warmup_epochs=0.5"),
    ("sgd", "step", "schedule.step_epochs=1"),
    ("lion", "constant", "schedule.warmup_epochs=1.8"),
    ("lamb", "inverse_sqrt", "schedule.timescale_epochs=1"),
    ("muon", "cosine", "schedule.cooldown_epochs=1"),
)


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "schedule", "shape"), KILLED)
def test_a_kill_changes_nothing_under_any_optimizer_or_schedule(
    optimizer, schedule, shape, small_images, here, set_threads
):
    set_threads(1)
    chosen = (f"optim={optimizer}", "optim.lr=1e-3", f"schedule={schedule}", shape)
    assert_a_kill_changes_nothing((*SMALL, f"data.root={small_images}", *chosen), here)


def test_those_are_all_optimizers_and_schedules():
    assert {pair[0] for pair in KILLED} == {file.stem for file in (PROJECT / "conf/optim").glob("*.yaml")}
    assert {pair[1] for pair in KILLED} == set(SCHEDULES)


@pytest.mark.parametrize(
    "optimizer", ["adamw2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sgd", "lion", "lamb", "muon"))]
)
def test_every_optimizer_goes_on_bit_for_bit(optimizer, small_images, here):
    common = (*SMALL, f"data.root={small_images}", "name=a", f"optim={optimizer}", "optim.lr=1e-3", "eval_every=9")
    schedule = {"sgd": "step", "lion": "linear", "lamb": "trapezoid", "muon": "inverse_sqrt"}.get(optimizer, "constant")
    common = (*common, f"schedule={schedule}", "schedule.warmup_epochs=0.5", "epochs=2", "log_every=1")
    train_here(*common, "output_dir=whole", "max_steps=12")
    train_here(*common, "output_dir=part", "max_steps=7")
    train_here(*common, "output_dir=part", "max_steps=12")
    a, b = checkpoint(here / "whole"), checkpoint(here / "part")
    assert same_tensors(a["model"], b["model"])
    assert losses(here / "whole") == losses(here / "part")
    for line, again in zip(metrics(here / "whole", "train"), metrics(here / "part", "train"), strict=True):
        assert line["lr"] == again["lr"] and line.get("step_ratio_max") == again.get("step_ratio_max")


def test_a_checkpoint_of_another_optimizer_is_refused(small_images, here):
    common = (*SMALL, f"data.root={small_images}", "max_steps=2")
    train_here(*common, "name=a")
    with pytest.raises(UserError, match=r"optim\.name adamw → adamw2"):
        train_here(*common, "name=a", "optim=adamw2")
    with pytest.raises(UserError, match=r"optim\.name adamw → lion"):
        train_here(*common, "name=b", "optim=lion", "resume=outputs/a/checkpoints/last.pt")


@pytest.mark.slow
def test_a_run_goes_on_with_more_processes(small_images, here):
    common = (*SMALL, *NO_LOCAL_NOISE, f"data.root={small_images}", "epochs=3", "name=a")
    train_here(*common, "output_dir=whole")
    train_here(*common, "output_dir=part", "max_steps=13")
    two = run("train.py", *common, "output_dir=part", cwd=here, processes=2)
    assert two.returncode == 0, two.stderr
    assert "continuing from step 13" in two.stdout
    a, b = losses(here / "whole"), losses(here / "part")
    assert a.keys() == b.keys()
    assert max(abs(a[step] - b[step]) for step in a) < 1e-4


def test_sigterm_saves_and_the_run_goes_on(small_images, here):
    common = (*SMALL, f"data.root={small_images}", "epochs=20", "eval_every=20", "name=a", "checkpoint.every_epochs=20")
    folder = here / "outputs/a"
    code = kill_in_mid_epoch(common, folder, here, 5, signal.SIGTERM)
    assert code == 128 + signal.SIGTERM
    state = checkpoint(folder)
    assert state["step"] >= 5
    again = run_here("train.py", *common, f"max_steps={state['step'] + 2}", cwd=here)
    assert again.returncode == 0, again.stderr
    assert checkpoint(folder)["step"] == state["step"] + 2


@pytest.mark.slow
def test_torchrun_stopped_by_sigterm_has_saved(small_images, here):
    common = (*SMALL, f"data.root={small_images}", "epochs=99", "eval_every=99", "name=a", "checkpoint.every_epochs=99")
    process = subprocess.Popen(
        command("train.py", *common, processes=2), cwd=here, env=environment(), stdout=subprocess.DEVNULL
    )
    folder = here / "outputs/a"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (folder / "metrics.jsonl").is_file():
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=60)
    assert checkpoint(folder)["step"] >= 1


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


def test_another_recipe_in_the_same_directory_is_refused(small_images, here):
    common = (*SMALL, f"data.root={small_images}", "name=a", "max_steps=2")
    train_here(*common)
    before = (here / "outputs/a/config.yaml").read_text()
    with pytest.raises(UserError, match=r"optim\.lr 0\.004 → 0\.5, seed 0 → 3; set another name"):
        train_here(*common, "optim.lr=0.5", "seed=3")
    with pytest.raises(UserError, match="resume=never"):
        train_here(*common, "resume=never")
    assert (here / "outputs/a/config.yaml").read_text() == before
    train_here(*common, "max_steps=3", "log_every=2", "checkpoint.keep=0", "micro_batch_size=16")
    assert checkpoint(here / "outputs/a")["step"] == 3


def test_other_images_are_refused(small_images, here):
    images = shutil.copytree(small_images, here / "images")
    common = (*SMALL, f"data.root={images}", "name=a")
    train_here(*common, "max_steps=2")
    next((images / "train").glob("*/*.png")).unlink()
    with pytest.raises(UserError, match="training images have changed since the run began"):
        train_here(*common, "max_steps=3")


def test_a_damaged_checkpoint_falls_back(small_images, here, capsys):
    common = (*SMALL, f"data.root={small_images}", "name=a", "checkpoint.every_steps=3")
    train_here(*common, "max_steps=7")
    last = here / "outputs/a/checkpoints/last.pt"
    whole = last.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-50000] + bytes(40000) + whole[-10000:]):
        last.write_bytes(damaged)
        train_here(*common, "max_steps=7")
        said = capsys.readouterr().out
        assert "is damaged" in said and "continuing from step 6" in said
        assert checkpoint(here / "outputs/a")["step"] == 7


@pytest.mark.slow
def test_a_full_disk_costs_no_checkpoint(small_images, here):
    """The limit on file size acts like a disk that becomes full while the checkpoint is written."""
    common = (*SMALL, f"data.root={small_images}", "name=a", "checkpoint.every_steps=4")
    train_here(*common, "max_steps=4")
    before = (here / "outputs/a/checkpoints/last.pt").read_bytes()
    limited = ["prlimit", f"--fsize={len(before) // 2}", *command("train.py", *common)]
    out = subprocess.run(limited, cwd=here, env=environment(), capture_output=True, text=True, timeout=120)
    assert out.returncode == 2
    assert re.search(r"error: the checkpoint of step 8 could not be saved .*File too large.*same command", out.stderr)
    assert (here / "outputs/a/checkpoints/last.pt").read_bytes() == before
    assert not list((here / "outputs/a/checkpoints").glob(".*"))
    train_here(*common, "max_steps=8")
    assert checkpoint(here / "outputs/a")["step"] == 8


def test_a_finished_run_says_so(small_images, here, capsys):
    common = (*SMALL, f"data.root={small_images}", "name=a", "max_steps=2")
    train_here(*common)
    weights = checkpoint(here / "outputs/a")["model"]
    capsys.readouterr()
    train_here(*common)
    assert "the run has already ended at step 2" in capsys.readouterr().out
    assert same_tensors(weights, checkpoint(here / "outputs/a")["model"])


def test_a_run_can_be_rewound_and_branched(small_images, here, capsys):
    common = (*SMALL, f"data.root={small_images}", "checkpoint.every_steps=2", "checkpoint.keep=2", "max_steps=6")
    train_here(*common, "name=a")
    folder = here / "outputs/a/checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["best.pt", "last.pt", "step_00000002.pt", "step_00000004.pt"]
    whole = checkpoint(here / "outputs/a")
    train_here(*common, "name=b", f"resume={folder / 'step_00000004.pt'}")
    assert same_tensors(whole["model"], checkpoint(here / "outputs/b")["model"])
    rewind = (*common, "name=a", f"resume={folder / 'step_00000002.pt'}")
    earlier = (folder / "step_00000002.pt").read_bytes()
    (folder / "step_00000002.pt").write_bytes(earlier[: len(earlier) // 2])
    with pytest.raises(UserError, match=r"step_00000002.pt cannot be read: it is damaged"):
        train_here(*rewind)
    assert (folder / "step_00000004.pt").exists() and checkpoint(here / "outputs/a")["step"] == 6
    (folder / "step_00000002.pt").write_bytes(earlier)
    capsys.readouterr()
    train_here(*rewind)
    assert "continuing from step 2" in capsys.readouterr().out
    assert same_tensors(whole["model"], checkpoint(here / "outputs/a")["model"])
    assert checkpoint(here / "outputs/a", "before_rewind.pt")["step"] == 6
    train_here(*rewind)
    assert "the run has already ended at step 6" in capsys.readouterr().out, "the same command does not rewind twice"
    with pytest.raises(UserError, match=r"best\.pt cannot rewind its own run"):
        train_here(*common, "name=a", f"resume={folder / 'best.pt'}")


def test_a_run_killed_before_its_validation_makes_up_for_it(small_images, here):
    common = (*SMALL, f"data.root={small_images}", "name=a", "checkpoint.every_steps=10", "max_steps=10")
    train_here(*common)
    state = checkpoint(here / "outputs/a") | {"validated": 0, "best": None}
    torch.save(state, here / "outputs/a/checkpoints/last.pt")
    (here / "outputs/a/metrics.jsonl").write_text("")
    train_here(*common)
    assert [line["step"] for line in metrics(here / "outputs/a", "val")] == [10]
    assert checkpoint(here / "outputs/a")["validated"] == 10


@pytest.mark.slow
def test_two_runs_do_not_share_a_directory(small_images, here):
    common = (*SMALL, f"data.root={small_images}", "name=a")
    process = subprocess.Popen(
        command("train.py", *common, "epochs=500"), cwd=here, env=environment(), stdout=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (here / "outputs/a/metrics.jsonl").is_file():
            time.sleep(0.1)
        with pytest.raises(UserError, match="another process trains in outputs/a"):
            train_here(*common, "epochs=500")
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_checkpoints_of_different_steps_are_refused(small_images, here):
    """Without shared storage, one process may find a checkpoint and the other none."""
    common = (*SMALL, f"data.root={small_images}", "name=a")
    train_here(*common, "max_steps=2")
    shutil.copytree(here / "outputs", here / "one" / "outputs")
    (here / "other").mkdir()
    script = here / "start.sh"
    script.write_text('cd "$([ "$RANK" = 0 ] && echo one || echo other)" && exec "$@"\n')
    out = subprocess.run(
        [*TORCHRUN, "--nproc-per-node=2", "--no-python", "bash", str(script), *command("train.py", *common)],
        cwd=here,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert out.returncode != 0
    assert re.search("error: the processes would continue from different steps", out.stderr), out.stderr


def test_a_new_option_does_not_orphan_old_runs(small_images, here):
    common = (*SMALL, f"data.root={small_images}", "name=a")
    train_here(*common, "max_steps=2")
    folder = here / "outputs/a"
    state = checkpoint(folder)
    del state["config"]["optim"]["eps"], state["config"]["model"]["mlp_ratio"]
    torch.save(state, folder / "checkpoints/last.pt")
    (folder / "config.yaml").write_text((folder / "config.yaml").read_text().replace("  eps: 1.0e-08\n", ""))
    assert " eps:" not in (folder / "config.yaml").read_text()
    train_here(*common, "max_steps=3")
    assert checkpoint(folder)["step"] == 3


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
