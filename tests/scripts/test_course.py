"""Finished runs make a reference."""

import json
from pathlib import Path

from engine.options.plain import write_settings
from engine.reference import Reference
from scripts.common.course import Course, write_reference
from tests.engine.test_reference import metrics, quickstart


def a_run(folder: Path, top1: list[float | None], *overrides: str) -> Path:
    """The folder of a run of five epochs, unless the overrides say otherwise."""
    folder.mkdir()
    write_settings(quickstart("epochs=5", *overrides), folder / "config.yaml")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics(top1)))
    return folder


def test_a_written_reference_is_read_again(tmp_path):
    runs = [Course.of(a_run(tmp_path / f"{seed}", [50.0 + seed] * 5, f"seed={seed}")) for seed in (0, 1)]
    (tmp_path / "0/train.log").write_text(
        "2026-11-26 22:38:03,726 INFO a: a model\n2026-11-26 22:38:05,369 INFO epoch 1/9  step 1\n"
    )
    write_reference(tmp_path / "a.json", runs)
    reference = Reference.read(tmp_path / "a.json")
    assert reference.curves == [run.curve for run in runs] and reference.setting == runs[0].setting
    kept = json.loads((tmp_path / "a.json").read_text())["runs"]
    assert [run["seed"] for run in kept] == [0, 1] and [run["log"] for run in kept] == [["a: a model"], []]
