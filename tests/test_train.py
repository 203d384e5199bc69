"""The real training command: learns, is exact over processes and interruptions, and loses nothing."""

import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from engine.errors import UserError
from tests.runs import (
    ALL_AUGMENTATION,
    NO_LOCAL_NOISE,
    SMALL,
    TORCHRUN,
    checkpoint,
    command,
    environment,
    losses,
    metrics,
    run,
    same_tensors,
    train_here,
)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_leaves_what_it_promises_and_eval_agrees(small_images, here):
    out = run("train.py", *SMALL, "name=a", f"data.root={small_images}", "epochs=3", cwd=here)
    assert out.returncode == 0, out.stderr
    folder = here / "outputs" / "a"
    for name in ("config.yaml", "metrics.jsonl", "train.log", "checkpoints/last.pt", "checkpoints/best.pt"):
        assert (folder / name).is_file(), name
    for picture in ("curves.png", "batch.png"):
        assert (folder / "plots" / picture).read_bytes()[:4] == b"\x89PNG"
    train, val = metrics(folder, "train"), metrics(folder, "val")
    assert [line["step"] for line in train] == list(range(1, 31))
    keys = {"epoch", "loss", "lr", "grad_norm", "images_per_second", "data_wait", "memory_gb"}
    assert keys <= train[0].keys()
    assert [line["epoch"] for line in val] == [1, 2, 3]
    assert {"top1", "top5", "loss", "images"} <= val[0].keys()
    assert train[-1]["loss"] < train[0]["loss"]
    assert train[0]["lr"] == max(line["lr"] for line in train), "full learning rate from the first step"

    said = re.search(r"python (eval\.py) (checkpoint=\S+)", out.stdout)
    scored = run(said[1], said[2], "device=cpu", "max_workers=0", cwd=here)
    assert scored.returncode == 0, scored.stderr
    top1 = re.compile(r"top-1 (\S+) %, top-5")
    assert top1.search(scored.stdout)[1] == top1.search(out.stdout)[1]
    result = __import__("json").loads((here / "eval.json").read_text())
    assert (result["top1"], result["images"]) == (val[-1]["top1"], val[-1]["images"])
    assert result["loss"] == pytest.approx(val[-1]["loss"], abs=1e-6)


def test_two_processes_follow_one(small_images, here):
    """At the same global batch the losses of 50 steps agree to 1e-4."""
    common = (*SMALL, *NO_LOCAL_NOISE, f"data.root={small_images}", "epochs=5", "eval_every=5")
    one = run("train.py", *common, "name=one", cwd=here)
    two = run("train.py", *common, "name=two", cwd=here, processes=2)
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    a, b = losses(here / "outputs/one"), losses(here / "outputs/two")
    assert len(a) == 50 and a.keys() == b.keys()
    assert max(abs(a[step] - b[step]) for step in a) < 1e-4
    final_one, final_two = metrics(here / "outputs/one", "val")[-1], metrics(here / "outputs/two", "val")[-1]
    assert final_one["images"] == final_two["images"] == 80


@pytest.mark.slow
def test_mixing_does_not_depend_on_processes(small_images, here):
    common = (*SMALL, f"data.root={small_images}", "augment.mixup=0.8", "augment.cutmix=1.0", "max_steps=6")
    train_here(*common, "name=one", "batch_size=24")
    two = run("train.py", *common, "name=three", "batch_size=24", cwd=here, processes=3)
    assert two.returncode == 0, two.stderr
    a, b = losses(here / "outputs/one"), losses(here / "outputs/three")
    assert max(abs(a[step] - b[step]) for step in a) < 1e-4


def test_accumulation_changes_nothing(small_images, here):
    common = (*SMALL, f"data.root={small_images}", "augment.mixup=0.8", "augment.cutmix=1.0", "max_steps=8")
    train_here(*common, "name=whole")
    train_here(*common, "name=parts", "micro_batch_size=8")
    a, b = losses(here / "outputs/whole"), losses(here / "outputs/parts")
    assert len(a) == 8
    assert max(abs(a[step] - b[step]) for step in a) < 1e-4


def kill_in_mid_epoch(arguments: tuple[str, ...], folder: Path, here: Path, step: int, number: int) -> int:
    """Start a run and signal it once it has logged a step."""
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


def test_a_killed_run_ends_with_the_same_weights(small_images, here):
    """SIGKILL in the middle of an epoch, full augmentation: bit for bit what an uninterrupted run gives."""
    common = (*SMALL, *ALL_AUGMENTATION, f"data.root={small_images}", "epochs=3", "checkpoint.every_steps=4")
    whole = run("train.py", *common, "name=whole", cwd=here)
    assert whole.returncode == 0, whole.stderr
    folder = here / "outputs/killed"
    code = kill_in_mid_epoch((*common, "name=killed"), folder, here, 15, signal.SIGKILL)
    assert code == -signal.SIGKILL
    reached = checkpoint(folder)["step"]
    assert 0 < reached < 30 and checkpoint(folder)["step_in_epoch"] != 0
    again = run("train.py", *common, "name=killed", cwd=here)
    assert again.returncode == 0, again.stderr
    assert f"going on from step {reached}" in again.stdout
    a, b = checkpoint(here / "outputs/whole"), checkpoint(folder)
    assert a["step"] == b["step"] == 30
    assert same_tensors(a["model"], b["model"]) and same_tensors(a["ema"], b["ema"])
    assert losses(here / "outputs/whole") == losses(folder), "metrics are cut back and written again"


def test_a_run_goes_on_with_more_processes(small_images, here):
    common = (*SMALL, *NO_LOCAL_NOISE, f"data.root={small_images}", "epochs=3", "name=a")
    train_here(*common, "output_dir=whole")
    train_here(*common, "output_dir=part", "max_steps=13")
    two = run("train.py", *common, "output_dir=part", cwd=here, processes=2)
    assert two.returncode == 0, two.stderr
    assert "going on from step 13" in two.stdout
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
    again = run("train.py", *common, f"max_steps={state['step'] + 2}", cwd=here)
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
    out = run("train.py", *common, "log_every=5", "checkpoint.every_steps=5", cwd=here)
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
    with pytest.raises(UserError, match="training images are not those the run began with"):
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
        assert "is damaged" in said and "going on from step 6" in said
        assert checkpoint(here / "outputs/a")["step"] == 7


def test_a_full_disk_costs_no_checkpoint(small_images, here):
    """The limit on file size stands for a disk that fills up while the checkpoint is written."""
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
    assert "the run had ended at step 2" in capsys.readouterr().out
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
    capsys.readouterr()
    train_here(*rewind)
    assert "going on from step 2" in capsys.readouterr().out
    assert same_tensors(whole["model"], checkpoint(here / "outputs/a")["model"])
    assert checkpoint(here / "outputs/a", "before_rewind.pt")["step"] == 6
    train_here(*rewind)
    assert "the run had ended at step 6" in capsys.readouterr().out, "the same command does not rewind twice"
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
    """Machines without shared storage: one process finds a checkpoint and the other none."""
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
    assert re.search("error: the processes would go on from different steps", out.stderr), out.stderr


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
    assert re.search(r"error: .*\.png cannot be decoded .* in its place", out.stderr), out.stderr


@pytest.mark.parametrize(
    "options",
    [("amp=bf16",), ("amp=fp16", "ema=0.9"), ("channels_last=true",), ("model.grad_checkpointing=true",)],
    ids=lambda options: options[0],
)
def test_each_precision_and_layout_trains_and_resumes(options, small_images, here):
    common = (*SMALL, *ALL_AUGMENTATION, *options, f"data.root={small_images}", "name=a")
    train_here(*common, "output_dir=whole", "max_steps=8")
    train_here(*common, "output_dir=part", "max_steps=5")
    train_here(*common, "output_dir=part", "max_steps=8")
    a, b = checkpoint(here / "whole"), checkpoint(here / "part")
    assert same_tensors(a["model"], b["model"])
    assert a["stepper"]["scaler"] == b["stepper"]["scaler"]
    assert losses(here / "whole") == losses(here / "part")


def test_gradient_checkpointing_changes_no_loss(small_images, here):
    common = (*SMALL, f"data.root={small_images}", "max_steps=4")
    train_here(*common, "name=plain")
    train_here(*common, "name=checkpointed", "model.grad_checkpointing=true")
    a, b = losses(here / "outputs/plain"), losses(here / "outputs/checkpointed")
    assert max(abs(a[step] - b[step]) for step in a) < 1e-6


def test_dali_trains_like_torch(small_images, here):
    common = (*SMALL, f"data.root={small_images}", "max_steps=6")
    train_here(*common, "name=torch")
    train_here(*common, "name=dali", "data.backend=dali")
    a, b = losses(here / "outputs/torch"), losses(here / "outputs/dali")
    assert max(abs(a[step] - b[step]) for step in a) < 0.02


def test_any_model_of_timm_trains(small_images, here):
    small = [o for o in SMALL if not o.startswith("model.")]
    train_here(*small, f"data.root={small_images}", "model=timm", "model.name=resnet18", "name=r", "max_steps=2")
    assert metrics(here / "outputs/r", "val")[-1]["images"] == 80


def test_profile_leaves_a_trace(small_images, here):
    train_here(*SMALL, f"data.root={small_images}", "name=a", "max_steps=12", "profile=true")
    assert (here / "outputs/a/profile/trace.json").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_compiled_follows_eager(small_images, here):
    common = (*SMALL, *NO_LOCAL_NOISE, f"data.root={small_images}", "max_steps=5")
    train_here(*common, "name=eager")
    train_here(*common, "name=compiled", "compile=true")
    a, b = losses(here / "outputs/eager"), losses(here / "outputs/compiled")
    assert max(abs(a[step] - b[step]) for step in a) < 1e-4


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_quickstart_learns(here):
    """The README's claim; the time is a matter of the machine and not tested."""
    out = run("train.py", "experiment=quickstart", cwd=here, timeout=1500, OMP_NUM_THREADS="2")
    assert out.returncode == 0, out.stderr
    assert metrics(here / "outputs/quickstart", "val")[-1]["top1"] >= 86.0


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_a_full_size_model_takes_real_steps(here):
    arguments = ("model=lipsformer_swin_tiny", "data=synthetic", "max_steps=3", "device=cpu", "batch_size=8")
    out = run("train.py", *arguments, "log_every=1", cwd=here, timeout=900, OMP_NUM_THREADS="2")
    assert out.returncode == 0, out.stderr
    steps = losses(here / "outputs/lipsformer_swin_tiny")
    assert len(steps) == 3 and all(6.5 < loss < 7.3 for loss in steps.values())
