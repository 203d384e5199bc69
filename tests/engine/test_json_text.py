"""All JSON that is written is valid, and its readers accept null for a number that is not finite."""

import json
import math
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from engine.callbacks.plots import draw_curves
from engine.json_text import to_json, with_text_for_nonfinite
from engine.run_dir import RunDirectory
from optim import OptimConfig
from scripts.compare_runs import main as compare_runs

LINES = (
    {"split": "train", "step": 1, "loss": math.nan, "lr": 0.1, "grad_norm": math.inf},
    {"split": "train", "step": 2, "loss": 2.0, "lr": 0.1, "grad_norm": 1.0},
    {"split": "val", "step": 2, "loss": math.nan, "top1": 50.0, "top5": 60.0},
)


def strictly(text: str):
    """Parse as strict JSON, which has no NaN and no Infinity."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_what_is_not_finite_becomes_null():
    content = {"a": [1.0, math.nan, (math.inf,)], "b": {"c": -math.inf, "d": 0.1, "e": "NaN", "f": None, "g": 3}}
    expected = {"a": [1.0, None, [None]], "b": {"c": None, "d": 0.1, "e": "NaN", "f": None, "g": 3}}
    assert strictly(to_json(content)) == strictly(to_json(content, indent=1)) == expected


def test_settings_come_back_from_words():
    settings = {"name": "adamw2", "eps": 1e-8, "clip": math.inf}
    found = strictly(to_json(with_text_for_nonfinite(settings)))
    assert OmegaConf.merge(OmegaConf.structured(OptimConfig), found).clip == math.inf


def test_lines_of_older_runs_become_valid(tmp_path):
    run = RunDirectory(tmp_path)
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    run.cut_metrics(step=9, validated=9)
    lines = [strictly(line) for line in run.metrics.read_text().splitlines()]
    assert [line["loss"] for line in lines] == [None, 2.0, None]


@pytest.mark.parametrize("number", [1, 3])
def test_readers_stand_null(number, tmp_path, monkeypatch, capsys):
    lines = [json.loads(to_json(line)) for line in (*LINES[:1] * (number - 2), *LINES)]
    if number == 1:
        lines = [line | {"loss": None} for line in lines]
    draw_curves(lines, tmp_path / "curves.png")
    (tmp_path / "metrics.jsonl").write_text("".join(to_json(line) + "\n" for line in lines))
    monkeypatch.setattr("sys.argv", ["compare_runs.py", str(tmp_path), "--plot", str(tmp_path / "c.png")])
    assert compare_runs() == 0 and Path(tmp_path / "curves.png").is_file()
    assert ("| 2 | – | 50.00" if number == 1 else "| 2 | 2.0000 | 50.00") in capsys.readouterr().out
