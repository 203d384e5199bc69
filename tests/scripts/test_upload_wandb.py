"""A whole run is sent to W&B from its metrics: one run, every step once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import wandb

from engine.callbacks.wandb_files import read_rows
from engine.errors import UserError
from engine.run_dir import RunDirectory
from scripts import upload_wandb
from tests.fake_wandb import serving
from tests.runs import PROJECT, SMALL, environment, metrics, train_here
from tests.wandb_runs import read_run


@pytest.fixture(scope="module")
def run(small_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped and resumed, without W&B."""
    folder = tmp_path_factory.mktemp("runs") / "a"
    common = (*SMALL, f"data.root={small_images}", "name=a", f"output_dir={folder}", "monitor.every=2")
    train_here(*common, "max_steps=3", draws=True)
    train_here(*common, "max_steps=7", "logger.project=other", "logger.group=g")
    lines = metrics(folder)
    next(line for line in lines if line["split"] == "val")["top1"] = 99.0  # the first validation is the best
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def upload(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROJECT / "scripts/upload_wandb.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(**variables), timeout=250)


def test_every_line_is_sent_once(run: Path) -> None:
    done = upload(run, "--offline", "--project", "p")
    assert (done.returncode, done.stderr) == (0, "")
    (file,) = run.glob("uploaded/wandb/offline-run-*/run-*.wandb")
    assert done.stdout.startswith(f"uploaded {run} to {file.parent}")
    rows = [row for _, row in read_rows(file)]
    for kind in ("train", "val", "stability"):
        sent = [row["step"] for row in rows if f"{kind}/epoch" in row]
        assert sent == [line["step"] for line in metrics(run, kind)] != []
    assert [row["train/loss"] for row in rows if "train/loss" in row] == [
        line["loss"] for line in metrics(run, "train")
    ]
    assert {"batch/path", "val_batch/path"} <= {key for row in rows for key in row}
    found = read_run(run / "uploaded")
    assert float(found["summary"]["best_top1"]) == 99.0
    assert (found["project"], found["group"]) == ("p", "g"), "typed ones count before those of the run"


@pytest.mark.slow
def test_what_cannot_be_sent_is_one_line(run: Path, tmp_path: Path) -> None:
    done = upload(tmp_path, "--offline")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {tmp_path} is not a run with metrics: give the folder that holds its metrics.jsonl\n"
    done = upload(run, HOME=str(tmp_path), WANDB_API_KEY="", WANDB_BASE_URL="http://127.0.0.1:1")
    assert done.returncode == 2
    assert done.stderr.startswith("error: Weights & Biases does not take the run (") and done.stderr.count("\n") == 1


def test_a_server_that_falls_silent_is_one_line(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_wandb, "LONGEST_END", 3.0)
    with serving() as server:
        for name, value in server.variables(tmp_path).items():
            monkeypatch.setenv(name, value)

        def fall_silent(*_: object) -> None:
            server.status = None

        monkeypatch.setattr(upload_wandb, "best_top1", fall_silent)  # called after each line that was logged
        with pytest.raises(UserError, match=r"^Weights & Biases does not take the run "):
            upload_wandb.upload(RunDirectory(run), {"mode": "online", "dir": str(tmp_path / "w"), "project": "p"})
        server.status = 200
        wandb.teardown()
