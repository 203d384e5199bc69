"""W&B's files: what a run that resumes finds in them, and what it logs again."""

import shutil
from pathlib import Path

import pytest
import wandb

from engine.callbacks.wandb_files import cut_rows, files_of, is_sent, read_rows
from tests.runs import SMALL, metrics, train_here

ROWS = 400  # more than one block of the file


@pytest.fixture
def written(tmp_path) -> Path:
    """A file of a run that logged ``ROWS`` rows and was finished."""
    run = wandb.init(mode="offline", id="a", dir=str(tmp_path), settings=wandb.Settings(silent=True))
    for step in range(ROWS):
        run.log({"train/epoch": step / 10, "train/text": "x" * 100, "step": step})
    run.finish()
    wandb.teardown()
    (path,) = files_of(tmp_path / "wandb", "a")
    return path


def steps(path: Path) -> list[int]:
    return [row["step"] for _, row in read_rows(path)]


def test_a_file_holds_what_was_logged_and_is_cut_after_a_step(written):
    assert steps(written) == list(range(ROWS))
    assert not is_sent(written)
    whole = written.read_bytes()
    cut_rows(written, 250)
    assert steps(written) == list(range(251))
    assert whole.startswith(written.read_bytes())
    cut_rows(written, 250)
    assert steps(written) == list(range(251)), "nothing is left to cut"
    cut_rows(written, -1)
    assert steps(written) == []


def test_a_file_that_ends_anywhere_holds_the_rows_before(written):
    """A service that is killed leaves such a file."""
    whole = written.read_bytes()
    for size in range(0, len(whole), 997):
        written.write_bytes(whole[:size])
        found = steps(written)
        assert found == list(range(len(found))) and len(found) >= ROWS * size // len(whole) - 20


def logged(folder: Path, kind: str = "train") -> list[int]:
    """The steps of all lines of a kind in all offline files of a run."""
    rows = [row for path in folder.glob("wandb/offline-run-*/run-*.wandb") for _, row in read_rows(path)]
    return sorted(row["step"] for row in rows if f"{kind}/epoch" in row)


def written_steps(folder: Path, kind: str = "train") -> list[int]:
    return [line["step"] for line in metrics(folder, kind)]


def test_a_resume_logs_what_the_files_lack_and_nothing_that_was_cleaned(small_images, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setattr("engine.callbacks.wandb_logger.PATIENCE", 100.0)
    folder = tmp_path / "a"
    common = (*SMALL, f"data.root={small_images}", "name=a", f"output_dir={folder}")
    train_here(*common, "max_steps=3", draws=True)
    common = (*common, "logger=wandb")
    train_here(*common, "max_steps=5")
    assert logged(folder) == [1, 2, 3, 4, 5], "a logger that comes later gets the steps before, too"
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    cut_rows(path, 2)
    train_here(*common, "max_steps=7")
    assert logged(folder) == written_steps(folder) == [1, 2, 3, 4, 5, 6, 7]
    assert logged(folder, "val") == written_steps(folder, "val") == [3, 5, 7]
    for start in folder.glob("wandb/offline-run-*"):
        shutil.rmtree(start)  # as `wandb clean` does with files that were sent
    train_here(*common, "max_steps=9")
    assert logged(folder) == [8, 9]
