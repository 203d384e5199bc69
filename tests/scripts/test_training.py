"""What a study reads of the trainings that it started."""

import json
import math
from pathlib import Path

import pytest
import torch

from engine.errors import UserError
from scripts.studies.results import Outcome
from scripts.studies.training import outcome_of, visible_gpus

NOT_FINITE = "warning: x\nerror: the loss or gradient was not finite at step 30: the last good checkpoint is kept"


def a_run(folder: Path, losses: list[float | None], top1: list[float | None]) -> Path:
    lines: list[dict[str, object]] = [{"split": "train", "step": n, "loss": loss} for n, loss in enumerate(losses, 1)]
    lines += [{"split": "val", "step": n, "top1": value} for n, value in enumerate(top1, 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_run_that_ends_counts_with_its_last_accuracy(tmp_path: Path) -> None:
    run = a_run(tmp_path, [2.0, 1.0, 1.5], [40.0, 70.0, 60.0])
    assert outcome_of(run, 0, "", 15.0, 3.21) == Outcome(60.0, 70.0, 1.0, 1.5, False, None, 3.2)
    assert not outcome_of(run, 0, "", 60.0, 1).crashed and outcome_of(run, 0, "", 60.1, 1).crashed


def test_a_run_whose_loss_was_not_finite_has_crashed_and_has_no_accuracy(tmp_path: Path) -> None:
    run = a_run(tmp_path, [2.0, 1.0, None], [40.0])
    assert outcome_of(run, 1, NOT_FINITE, 15.0, 3.0) == Outcome(None, 40.0, 1.0, math.inf, True, 30, 3.0)
    early = a_run(tmp_path, [], [])
    assert outcome_of(early, 1, NOT_FINITE, 15.0, 3.0) == Outcome(None, None, math.inf, math.inf, True, 30, 3.0)


@pytest.mark.parametrize(
    ("status", "said", "why"),
    [
        (2, "a line\nerror: data.root is no folder\n", "data.root is no folder"),
        (-9, "a line", "it ended with status -9: a line"),
    ],
)
def test_a_run_that_ended_for_another_reason_is_no_row(status: int, said: str, why: str, tmp_path: Path) -> None:
    folder = a_run(tmp_path, [2.0], [40.0])
    with pytest.raises(UserError, match=f"the cell {folder.name} cannot be trained: {why}$"):
        outcome_of(folder, status, said, 15.0, 3.0)


@pytest.mark.parametrize(
    ("named", "count", "found"), [("GPU-a, 3", 2, ["GPU-a", "3"]), (None, 2, ["0", "1"]), ("5,6,7", 2, ["5", "6"])]
)
def test_gpus_are_named_as_the_variable_names_them(named, count, found, monkeypatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert visible_gpus() == found
