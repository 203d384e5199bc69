"""Running the real commands, and small image folders to run them on."""

import contextlib
import io
import json
import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from omegaconf import DictConfig

from engine.checkpoints.checkpoint_file import load_checkpoint
from engine.options.compose import settings_of
from engine.options.config import TrainConfig, register
from engine.run_dir import RunDirectory
from engine.training_run import train
from tests.plans import SWITCHED_ON

PROJECT = Path(__file__).resolve().parent.parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]

# A model with every part of the real ones, whose steps take milliseconds.
SMALL = (
    *("experiment=quickstart", "data=folder", "data.crop=28", "data.resize=28", "data.backend=torch", "max_workers=0"),
    *("model.depths=[1,1]", "model.embed_dim=12", "model.num_heads=[1,2]", "batch_size=32", "augment.mix_group=8"),
    *("epochs=2", "log_every=1", "logger=none", "eval.batch_size=64", "device=cpu"),
)
NEVER_SAVED = ("checkpoint.every_epochs=null", "checkpoint.every_minutes=null", "eval_every=99")
# All sources of randomness.
ALL_AUGMENTATION = (
    *(f"augment.{name}={value}" for name, value in (SWITCHED_ON | {"mixup": 0.8, "cutmix": 1.0}).items()),
    "augment.label_smoothing=0.1",
    *("augment.auto_augment=rand-m9-mstd0.5-inc1", "augment.repeats=2", "data.interpolation=random"),
    *("model.drop_path_rate=0.3", "augment.scale=[0.3,1.0]", "ema=0.9"),
)
# For runs that must learn in a few steps: RandAugment changes images of 28 pixels too much.
PLAIN_IMAGES = (
    "augment.auto_augment=null",
    "augment.repeats=1",
    "data.interpolation=bicubic",
)
NO_LOCAL_NOISE = (*(f"augment.{name}=0" for name in SWITCHED_ON), "model.drop_path_rate=0")


def command(entry: str, *overrides: str, processes: int = 1) -> list[str]:
    """The command line of an entry; with more than one process, under torchrun."""
    start = [*TORCHRUN, f"--nproc-per-node={processes}"] if processes > 1 else [sys.executable]
    return [*start, str(PROJECT / entry), *overrides]


def environment(**extra: str) -> dict[str, str]:
    """One thread for each process, so that results do not depend on the number of cores; no inherited W&B service."""
    inherited = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    return inherited | {"OMP_NUM_THREADS": "1"} | extra


def run(entry: str, *overrides: str, cwd: Path, processes: int = 1, timeout: float = 240, **extra: str):
    """Run an entry as a user does, and return its exit code, output and errors as text."""
    return subprocess.run(
        command(entry, *overrides, processes=processes),
        cwd=cwd,
        env=environment(**extra),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@contextlib.contextmanager
def undrawn() -> Iterator[None]:
    """No run draws pictures in this process: they take longer than a few steps, and a failure to draw ends no run."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("pictures.draw_batch", "pictures.draw_curves", "instruments.draw_heat_maps"):
            patch.setattr(f"engine.callbacks.{name}", lambda *_: None)
        yield


def run_here(entry: str, *overrides: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run an entry as ``run`` does, but in this process, which has already imported all modules, and undrawn."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    before, sys.argv = sys.argv, command(entry, *overrides)[1:]
    with undrawn(), contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_path(str(PROJECT / entry), run_name="__main__")
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            sys.argv = before
    return subprocess.CompletedProcess(command(entry, *overrides), code, out.getvalue(), err.getvalue())


def in_a_fork(target: Callable[[], None]) -> int | None:
    """The exit code of a function in a copy of this process: 0 if it returns, 1 after an error, None if it hangs."""
    child = multiprocessing.get_context("fork").Process(target=target)
    child.start()
    child.join(250)
    code = child.exitcode
    child.kill()
    return code


def settings(*overrides: str) -> TrainConfig:
    """The settings that ``train.py`` would run with."""
    return settings_of(overrides)


cached_settings = cache(settings)  # composing takes a second; for tests that change nothing in the settings


def composed(*overrides: str) -> DictConfig:
    """The options that Hydra composes for ``eval.py``."""
    register()
    with hydra.initialize_config_dir(str(PROJECT / "conf"), version_base="1.3"):
        return hydra.compose("eval", overrides=list(overrides))


def train_here(*overrides: str, draws: bool = False) -> None:
    """Train in this process, in the current folder; with pictures only if ``draws``."""
    with contextlib.nullcontext() if draws else undrawn():
        train(settings(*overrides))


def metrics(run_dir: Path, split: str | None = None) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if split is None or line["split"] == split]


def reached(run_dir: Path) -> int:
    """The last step that a run which still writes has logged; 0 before the first one."""
    return max((line["step"] for line in RunDirectory(run_dir).read_metrics()), default=0)


def losses(run_dir: Path) -> dict[int, float]:
    """Training loss of each step."""
    return {line["step"]: line["loss"] for line in metrics(run_dir, "train")}


def scores(here: Path) -> dict:
    """What ``eval.py`` wrote in the folder where it ran."""
    return json.loads((here / "eval.json").read_text())


def checkpoint(run_dir: Path, name: str = "last.pt") -> dict[str, Any]:
    """A run's checkpoint, with what its validation added."""
    return load_checkpoint(run_dir / "checkpoints" / name)


def same_tensors(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
