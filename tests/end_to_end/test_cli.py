"""Commands as a whole: flags, sweeps, names, help and the environment."""

import os
import re
import sys
from typing import Any

from engine.options import cli
from engine.options.paths import resolve_paths
from engine.options.settings import eval_settings, train_settings
from tests.runs import SMALL, checkpoint, run_here


def launched(monkeypatch, entry: str, *typed: str) -> list[Any]:
    """The settings of each job of a command; no job is run."""
    found = []

    def task(composed, choices, overrides, swept):
        if entry == "train":
            settings = train_settings(composed, choices, overrides, swept)
        else:
            resolve_paths(composed)
            settings = eval_settings(composed, None, overrides, swept)
        return lambda: found.append(settings)

    monkeypatch.setattr(sys, "argv", [f"{entry}.py", *typed])
    cli.launch(entry, task)
    return found


def test_a_command_as_a_whole(here, monkeypatch):
    """Flags in any place, text as typed, the home folder, and a separate directory for each run of the sweep."""
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    typed = ("data.root=~/d#1", "logger.group=1.10,1.1", "-m", "checkpoint=a=b.pt", "output_dir=~/${name}", "name=1e3")
    first, second = launched(monkeypatch, "train", *typed)
    assert (first.output_dir, first.logger.group) == ("/home/me/1e3-logger.group_1.10", "1.10")
    assert (second.output_dir, second.logger.group) == ("/home/me/1e3-logger.group_1.1", "1.1")
    assert first.data.root == "/home/me/d#1" and first.checkpoint.start == str(here / "a=b.pt")


def test_evaluations_of_a_sweep_write_files_of_their_own(here, monkeypatch):
    found = launched(monkeypatch, "eval", "-m", "model=deit_tiny", "checkpoint=1.10,1.1")
    assert [(f.checkpoint, f.output) for f in found] == [(n, f"eval-checkpoint_{n}.json") for n in ("1.10", "1.1")]


def test_a_job_of_an_array_is_named_by_all_its_options(here, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    (found,) = launched(monkeypatch, "train", "model=deit_tiny", "seed=7", "max_workers=0")
    assert found.name == "deit_tiny-seed_7-max_workers_0"


def test_help_shows_every_option_and_cfg_the_whole_recipe(tmp_path):
    shown = run_here("train.py", "--help", cwd=tmp_path).stdout
    for option in ("micro_batch_size", "every_minutes", "mix_group", "base_lr", "warmup_epochs", "index_dir"):
        assert option in shown
    assert "checkpoint=PATH, short for checkpoint.start=PATH" in shown
    assert re.search(r"^  norm: centernorm +# centernorm \| layernorm$", shown, re.MULTILINE)
    assert re.search(r"^  hflip: 0\.5 +# between 0 and 1$", shown, re.MULTILINE)
    assert re.search(r"^device: auto +# auto \| cpu \| cuda$", shown, re.MULTILINE)
    assert "recipe: cswin, deit, lipsformer, plain, swin; or a model's own" in shown
    assert "schema/" not in shown and "study" not in shown
    groups = re.compile(r"^\w+(?=: \w+, )", re.MULTILINE)
    assert {"experiment", "optim", "recipe", "sweep"} - set(groups.findall(shown)) == {"sweep"}, "which has one file"
    assert set(groups.findall(run_here("eval.py", "--help", cwd=tmp_path).stdout)) == {"data", "model"}
    recipe = run_here("train.py", "--cfg", "job", cwd=tmp_path).stdout
    for value in ("batch_size: 1024", "epochs: 300", "warmup_epochs: 0", "mixup: 0.8", "drop_path_rate: 0.2"):
        assert value in recipe


def test_a_sweep_gives_each_run_its_own_directory_and_weights(small_images, tmp_path):
    common = (*SMALL, f"data.root={small_images}", "max_steps=1", "optim.lr=1e-9", "optim.min_lr=0")
    out = run_here("train.py", "--multirun", *common, "seed=1,2", cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    runs = sorted(path for path in (tmp_path / "outputs").iterdir() if not path.name.startswith("."))
    assert len(runs) == 2 and runs[0].name.endswith("seed_1") and runs[1].name.endswith("seed_2"), runs
    one, two = (checkpoint(run)["model"]["head.weight"] for run in runs)
    assert (one - two).abs().max() > 0.01, "the seed also draws the initial weights, which hardly change here"


def test_a_mistake_in_the_last_run_of_a_sweep_is_found_before_the_first_one_trains(small_images, tmp_path):
    typed = ("--multirun", *SMALL, f"data.root={small_images}", "max_steps=1", "seed=1,2", "optim.lr=1e-3,-1")
    out = run_here("train.py", *typed, cwd=tmp_path)
    assert (out.returncode, out.stderr) == (2, "error: optim.lr=-1.0 must be more than 0\n")
    assert not list(tmp_path.glob("outputs/[!.]*"))


def test_a_sweep_of_conf_starts_its_grid(here, monkeypatch):
    """The file says that it is a sweep, so ``-m`` is not needed. What is typed comes before what the file says."""
    found = launched(monkeypatch, "train", *SMALL, "data.root=images", "sweep=lr", "seed=7")
    rates = (0.002, 0.004, 0.008)
    assert [f.output_dir for f in found] == [f"outputs/quickstart-optim.lr_{rate}" for rate in rates]
    assert [f.optim.lr for f in found] == [*rates] and {f.seed for f in found} == {7}


def test_the_shell_completes_options_and_choices(tmp_path, monkeypatch):
    for typed, expected in (
        ("model=lipsformer_cs", "model=lipsformer_cswin_tiny"),
        ("optim.weight_c", "optim.weight_cap="),
    ):
        line = f"python train.py {typed}"
        monkeypatch.setenv("COMP_LINE", line)
        monkeypatch.setenv("COMP_POINT", str(len(line)))
        assert run_here("train.py", "-sc", "query=bash", cwd=tmp_path).stdout.split() == [expected]


def test_imagenet_dir_is_found(small_images, tmp_path, monkeypatch):
    arguments = [o for o in SMALL if o != "data=folder"]
    monkeypatch.setenv("IMAGENET_DIR", str(small_images))
    out = run_here("train.py", *arguments, "data=imagenet", "max_steps=1", "name=a", cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    assert str(small_images) in (tmp_path / "outputs/a/config.yaml").read_text()


def test_environment_is_untouched_by_tests():
    assert "IMAGENET_DIR" not in os.environ
