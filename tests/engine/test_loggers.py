"""Loggers: real offline files of Weights & Biases, one run across resumes, and failures that do not stop training."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from engine.callbacks import Callback, refuse_unusable
from engine.errors import UserError
from tests.runs import PROJECT, SMALL, checkpoint, metrics, run, run_here, train_here
from tests.wandb_runs import read_run


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def logged(small_images, tmp_path_factory) -> Iterator[tuple[Path, Path]]:
    """A run of 5 steps with both loggers at once, and the same run resumed to 7 steps."""
    root = tmp_path_factory.mktemp("logged")
    options = (*[o for o in SMALL if o != "logger=none"], f"data.root={small_images}", "name=a")
    common = (*options, "logger=[wandb,tensorboard]", "amp=fp16", "monitor.every=2")
    common = (*common, "logger.entity=e", "logger.group=g")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_PROJECT", "p")
        patch.setenv("WANDB_TAGS", "t,u")
        patch.setenv("WANDB_NOTES", "n")
        patch.delenv("WANDB_API_KEY", raising=False)
        # The service may start slowly while other tests run.
        patch.setattr("engine.callbacks.wandb_logger.PATIENCE", 100.0)
        train_here(*common, f"output_dir={root}/first", "max_steps=5", draws=True)
        shutil.copytree(root / "first", root / "resumed")
        train_here(*common, f"output_dir={root}/resumed", "max_steps=7")  # its pictures are there
    yield root / "first", root / "resumed"


def test_an_offline_run_holds_what_the_metrics_file_holds(logged):
    first, resumed = logged
    found = read_run(first)
    assert {"optim", "model", "data", "batch_size"} <= found["config"]
    assert (found["project"], found["entity"], found["group"]) == ("p", "e", "g")
    assert (found["tags"], found["notes"]) == (["t", "u"], "n")
    history = found["history"]
    written = [line["loss"] for line in metrics(first, "train")]
    assert [float(v) for v in history["train/loss"]] == pytest.approx(written)
    for key in ("train/lr", "train/grad_norm", "train/loss_scale", "val/top1", "batch/path"):
        assert key in history, key
    # Stability readings: numbers for the summary and for each layer, and a picture of all layers over all steps.
    readings = metrics(first, "stability")
    assert [float(v) for v in history["stability/sigma_max"]] == [line["sigma_max"] for line in readings]
    for key in ("stability/entropy_min", "sec/stages.0.0.attn.branch", "activation/stages.1.1", "stability/path"):
        assert key in history, key
    assert float(found["summary"]["best_top1"]) == metrics(first, "val")[-1]["top1"]
    assert checkpoint(first)["callbacks"]["wandb"]["id"] == found["id"]
    assert read_run(resumed)["id"] == found["id"], "a resumed run stays one run"


@pytest.mark.slow
def test_each_run_of_a_w_and_b_sweep_has_its_own_directory_and_the_agent_s_id(small_images, here):
    """Two commands of ``conf/sweep/lr.wandb.yml``, with the arguments and variables that ``wandb agent`` gives them."""
    sweep = yaml.safe_load((PROJECT / "conf/sweep/lr.wandb.yml").read_text())
    typed = [word for word in sweep["command"] if not word.startswith("${") and word != "logger.mode=online"]
    small = [option for option in SMALL if option not in ("logger=none", *typed)]
    for number in (0, 1):
        chosen = {key: {"value": values["values"][number]} for key, values in sweep["parameters"].items()}
        options = create_sweep_command_args({"args": chosen})["args_no_hyphens"]
        (here / "grid.yaml").write_text(yaml.safe_dump({"wandb_version": 1} | chosen))
        variables = {"WANDB_SWEEP_ID": "a_sweep", "WANDB_RUN_ID": f"run{number}", "WANDB_SWEEP_PARAM_PATH": "grid.yaml"}
        more = (f"data.root={small_images}", "max_steps=1", "monitor.every=0")
        out = run("train.py", *typed, *options, *small, *more, cwd=here, **variables)
        assert out.returncode == 0, out.stderr
    folders = [path for path in (here / "outputs").iterdir() if path.is_dir()]
    assert sorted(read_run(folder)["id"] for folder in folders) == ["run0", "run1"]
    assert {checkpoint(folder)["callbacks"]["wandb"]["id"] for folder in folders} == {"run0", "run1"}
    assert {checkpoint(folder)["config"]["optim"]["lr"] for folder in folders} == {0.002, 0.004}
    # The same options again, in another sweep: the run has ended, and its lines belong to the agent's new run as well.
    out = run("train.py", *typed, *options, *small, *more, cwd=here, **variables | {"WANDB_RUN_ID": "again"})
    assert out.returncode == 0, out.stderr
    histories = {found["id"]: found["history"] for folder in folders if (found := read_run(folder))}
    assert "val/top1" in histories["again"] and "train/loss" in histories["again"]


def test_a_run_of_a_sweep_is_no_sweep_itself(here, monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "a_sweep")
    out = run_here("train.py", *SMALL, "data.root=unused", "sweep=lr", cwd=here)
    assert (out.returncode, out.stderr.count("\n")) == (2, 1) and "cannot be a sweep itself" in out.stderr


def test_no_logger_leaves_no_files(small_images, here):
    train_here(*SMALL, f"data.root={small_images}", "name=a", "max_steps=1")
    assert not (here / "outputs/a/wandb").exists()


@pytest.mark.slow
def test_training_goes_on_where_the_server_cannot_be_reached(small_images, here):
    address = "http://me:SECRET-of-url@127.0.0.1:9"
    secrets = {"WANDB_API_KEY": f"SECRET{'0' * 34}", "HF_TOKEN": "SECRET-of-hub", "WANDB_BASE_URL": address}
    common = (*SMALL, f"data.root={small_images}", "name=a", "max_steps=2", "profile=true", "monitor.every=1")
    loggers = ("logger=[wandb,tensorboard]", "logger.mode=online")
    out = run("train.py", *common, *loggers, cwd=here, **secrets)
    assert out.returncode == 0, out.stderr
    assert "Weights & Biases cannot be reached at http://***@127.0.0.1:9: continuing offline" in out.stdout
    assert read_run(here / "outputs/a")["history"]["train/loss"]
    files = [path for path in here.rglob("*") if path.is_file()]
    assert len(files) > 15
    told = [path for path in files if b"SECRET" in path.read_bytes()]
    assert not told and "SECRET" not in out.stdout + out.stderr, "no secrets in files and messages"


def test_a_copy_of_a_run_under_another_name_is_another_run(small_images, here):
    """Otherwise two runs would write into the same run on the server and overwrite each other."""
    common = (*SMALL, f"data.root={small_images}")
    train_here(*common, "name=a", "max_steps=1")
    states = {"wandb": {"id": "first", "best_top1": 3.0}}
    torch.save(checkpoint(here / "outputs/a") | {"callbacks": states}, here / "outputs/a/checkpoints/last.pt")
    shutil.copytree(here / "outputs/a", here / "outputs/b")
    train_here(*common, "name=a", "max_steps=2")
    train_here(*common, "name=b", "max_steps=2")
    assert checkpoint(here / "outputs/a")["callbacks"] == states
    assert checkpoint(here / "outputs/b")["callbacks"] == {}


def test_the_id_of_an_older_checkpoint_is_taken_over(small_images, here):
    """Older checkpoints stored only this id of the logger, under another key."""
    common = (*SMALL, f"data.root={small_images}", "name=a")
    train_here(*common, "max_steps=1")
    state = checkpoint(here / "outputs/a")
    del state["callbacks"]
    torch.save(state | {"wandb_id": "first"}, here / "outputs/a/checkpoints/last.pt")
    train_here(*common, "max_steps=2")
    assert checkpoint(here / "outputs/a")["callbacks"] == {"wandb": {"id": "first", "best_top1": None}}


def test_tensorboard_gets_numbers_pictures_and_settings(logged):
    first, resumed = logged
    events = EventAccumulator(str(first / "tensorboard"), {"scalars": 0, "images": 0}).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [
        (line["step"], pytest.approx(line["loss"])) for line in metrics(first, "train")
    ]
    assert {"train/lr", "val/top1", "stability/sigma_max", "sec/stages.0.0.attn.branch"} <= set(
        events.Tags()["scalars"]
    )
    assert {"batch", "stability"} <= set(events.Tags()["images"])
    assert events.Scalars("hparam/best_top1")[-1].value == pytest.approx(metrics(first, "val")[-1]["top1"])
    again = EventAccumulator(str(resumed / "tensorboard"), {"scalars": 0}).Reload()
    assert [e.step for e in again.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6, 7]


def test_tensorboard_has_each_step_once_however_the_run_went(small_images, here):
    """It is killed before its first checkpoint, has no logger for two steps, loses two steps, and takes them again."""
    common = (*SMALL, f"data.root={small_images}", "name=a", "monitor.every=1", "checkpoint.every_steps=1")
    folder = here / "outputs/a"
    train_here(*common, "logger=tensorboard", "max_steps=1")
    shutil.rmtree(folder / "checkpoints")
    train_here(*common, "max_steps=2")
    train_here(*common, "logger=tensorboard", "max_steps=4")
    shutil.copytree(folder / "checkpoints", here / "kept")
    train_here(*common, "logger=tensorboard", "max_steps=6")
    shutil.rmtree(folder / "checkpoints")
    shutil.move(here / "kept", folder / "checkpoints")
    train_here(*common, "max_steps=5")  # without it again
    train_here(*common, "logger=tensorboard", "max_steps=8")
    events = EventAccumulator(str(folder / "tensorboard"), {"scalars": 0}).Reload()
    for tag in ("train/loss", "stability/sigma_max", "sec/stages.0.0.attn.branch"):
        assert [event.step for event in events.Scalars(tag)] == list(range(1, 9)), tag
    assert checkpoint(folder)["callbacks"]["tensorboard"]["best_top1"] is not None


class Failing(Callback):
    """A user's callback that fails."""

    def __init__(self, run, state):
        self.state = {"starts": (state or {"starts": 0})["starts"] + 1}

    def on_line(self, line):
        raise ValueError("of all things")


class Unstarted(Callback):
    """Its constructor fails."""

    def __init__(self, run, state):
        raise RuntimeError("no server")


def test_a_callback_of_one_s_own_is_one_line_and_may_fail(small_images, here, capsys):
    common = (*SMALL, f"data.root={small_images}", "name=a", "+callbacks.mine=tests.engine.test_loggers.Failing")
    train_here(*common, "max_steps=1", "+callbacks.other=tests.engine.test_loggers.Unstarted")
    said = capsys.readouterr().out
    assert "other cannot start (no server): continuing without it; metrics.jsonl holds everything" in said
    train_here(*common, "max_steps=2")
    said += capsys.readouterr().out
    assert said.count("mine failed (of all things): the run continues, and") == 1
    assert checkpoint(here / "outputs/a")["callbacks"]["mine"] == {"starts": 2}
    with pytest.raises(UserError, match=r"callbacks: tests\.nothing\.Here cannot be imported .*: write it as package"):
        train_here(*common, "callbacks.mine=tests.nothing.Here", "max_steps=3")
    for path, hint in (
        ("tests.engine.test_loggers.Failling", "did you mean Failing"),
        ("tests.runs.Path", "there is none"),
    ):
        with pytest.raises(
            UserError, match=rf"callbacks: {path} is no subclass of engine\.callbacks\.Callback: {hint}"
        ):
            train_here(*common, f"callbacks.mine={path}", "max_steps=3")


class WithoutState(Callback):
    """Its constructor does not take a saved state."""

    def __init__(self, run):
        self.run = run


def test_a_callback_with_another_constructor_is_refused_before_the_training():
    with pytest.raises(
        UserError, match=r"WithoutState must take two arguments, __init__\(self, run, state\): too many"
    ):
        refuse_unusable({"mine": "tests.engine.test_loggers.WithoutState"})
    refuse_unusable({"mine": "tests.engine.test_loggers.Failing"})


class Odd(Callback):
    """Its state cannot be read from a checkpoint."""

    def __init__(self, run, state):
        self.state = {"seen": [{"loss": np.float64(2.5)}]}


def test_a_state_that_could_not_be_read_is_not_saved(small_images, here, capsys):
    common = (*SMALL, f"data.root={small_images}", "name=a", "+callbacks.mine=tests.engine.test_loggers.Odd")
    train_here(*common, "max_steps=1")
    said = "the state of mine cannot be saved (it holds a float64: use only numbers, text, lists and dicts)"
    assert capsys.readouterr().out.count(said) == 1
    train_here(*common, "max_steps=2")
    assert checkpoint(here / "outputs/a")["step"] == 2
