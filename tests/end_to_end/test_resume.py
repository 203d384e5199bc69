"""Runs go on exactly where they stopped, from the last checkpoint or an earlier one, whole or damaged."""

import gc
import re
import subprocess
import weakref

import pytest
import torch

from engine.checkpoints.checkpoint_file import load_checkpoint
from engine.errors import UserError
from engine.loop import TrainLoop
from tests.devices import run_on, tolerance
from tests.runs import (
    NO_LOCAL_NOISE,
    SMALL,
    checkpoint,
    command,
    environment,
    losses,
    metrics,
    run,
    same_tensors,
    train_here,
)

# On a CPU one is enough: the tests of kills (test_kills.py) resume a run of each of them.
OPTIMIZERS = ("adamw2", "sgd", "radam", "lion", "lamb", "muon", "adamuon", "nadamuon")
ON_GPU = [pytest.param("cuda", name, marks=pytest.mark.gpu) for name in OPTIMIZERS]


@pytest.mark.parametrize(("device", "optimizer"), [("cpu", "adamw2"), *ON_GPU])
def test_every_optimizer_goes_on_where_it_stopped(device, optimizer, small_images, here):
    """Bit for bit on a CPU."""
    common = (*SMALL, *run_on(device), f"data.root={small_images}", "name=a", f"optim={optimizer}", "optim.lr=1e-3")
    schedule = {"sgd": "step", "lion": "linear", "lamb": "trapezoid", "muon": "inverse_sqrt"}.get(optimizer, "constant")
    common = (*common, f"schedule={schedule}", "schedule.warmup_epochs=0.5", "epochs=2", "eval_every=9")
    common = (*common, "augment.mixup=0.8", "augment.mixup_off_epoch=1")  # it ends in the second part
    train_here(*common, "output_dir=whole", "max_steps=12")
    train_here(*common, "output_dir=part", "max_steps=7")
    train_here(*common, "output_dir=part", "max_steps=12")
    a, b = checkpoint(here / "whole"), checkpoint(here / "part")
    assert same_tensors(a["model"], b["model"]) or device == "cuda"
    about = {"rel": tolerance(device), "abs": 0}
    assert losses(here / "whole") == pytest.approx(losses(here / "part"), **about)
    for line, again in zip(metrics(here / "whole", "train"), metrics(here / "part", "train"), strict=True):
        assert line["lr"] == again["lr"]
        assert line.get("step_ratio_max", 0) == pytest.approx(again.get("step_ratio_max", 0), **about)


@pytest.mark.slow
def test_the_number_of_processes_may_grow_and_shrink_in_mid_epoch(small_images, here):
    """Three processes share the four mix groups of a batch: two of them take one group, the third takes two."""
    common = (*SMALL, *NO_LOCAL_NOISE, "augment.mixup=0.8", "augment.cutmix=1.0", f"data.root={small_images}", "name=a")
    train_here(*common, "output_dir=whole", "max_steps=12")
    train_here(*common, "output_dir=part", "max_steps=2")
    for processes, first, last in ((3, 2, 6), (2, 6, 12)):
        out = run("train.py", *common, "output_dir=part", f"max_steps={last}", cwd=here, processes=processes)
        assert out.returncode == 0, out.stderr
        assert f"continuing from step {first}" in out.stdout
    a, b = losses(here / "whole"), losses(here / "part")
    assert list(a) == list(b) == list(range(1, 13))
    assert max(abs(a[step] - b[step]) for step in a) < 1e-4


def test_a_run_that_goes_on_does_not_keep_what_it_has_read(small_images, here, monkeypatch):
    """The model has its own copy, so the weights of the checkpoint would fill the memory of the host to the end."""
    common = (*SMALL, f"data.root={small_images}", "name=a", "ema=0.9")
    train_here(*common, "max_steps=1")
    read: list[weakref.ref] = []

    def load(path):
        state = load_checkpoint(path)
        read.extend(weakref.ref(weight) for kind in ("model", "ema") for weight in state[kind].values())
        return state

    def fit(loop):
        gc.collect()
        kept.append(sum(weight() is not None for weight in read))
        return TrainLoop.fit(loop)

    kept: list[int] = []
    monkeypatch.setattr("engine.checkpoints.checkpoint.load_checkpoint", load)
    monkeypatch.setattr("engine.training_run.TrainLoop", type("Looking", (TrainLoop,), {"fit": fit}))
    train_here(*common, "max_steps=2")
    assert len(read) > 20 and kept == [0]


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
    out = subprocess.run(limited, cwd=here, env=environment(), capture_output=True, text=True, timeout=250)
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
    files = ["best.pt", "last.pt", "last.validation", "step_00000002.pt", "step_00000004.pt"]
    assert sorted(p.name for p in folder.iterdir()) == files
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
    train_here(*common)
    assert [line["step"] for line in metrics(here / "outputs/a", "val")] == [10]
    assert checkpoint(here / "outputs/a")["validated"] == 10


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


def test_another_number_of_epochs_is_said(small_images, here, capsys):
    common = (*SMALL, f"data.root={small_images}", "name=a", "eval_every=9")
    train_here(*common, "epochs=2", "max_steps=1")
    train_here(*common, "epochs=2", "max_steps=2")
    assert "the learning rate is that of" not in capsys.readouterr().out
    train_here(*common, "epochs=3", "max_steps=3")
    assert "epochs 2 → 3: from here the learning rate is that of 3 epochs" in capsys.readouterr().out
