"""The picture of several runs, and the pair of experiments that it was made for."""

import json
import sys
from pathlib import Path

import pytest

from engine.settings import as_container, flatten
from scripts import compare_runs
from tests.runs import SMALL, settings, train_here

LINES = [
    {"split": "train", "step": 1, "loss": 2.3},
    {"split": "train", "step": 20, "loss": 1.25},
    {"split": "val", "step": 10, "loss": 1.3, "top1": 61.5},
    {"split": "val", "step": 20, "loss": 1.3, "top1": 60.25},
]


def compared(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["compare_runs.py", *map(str, arguments)])
    return compare_runs.main()


def a_run(folder: Path, lines: list[dict[str, object]]) -> Path:
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_runs_are_drawn_and_told_together(tmp_path, monkeypatch, capsys):
    a, b = a_run(tmp_path / "a", LINES), a_run(tmp_path / "b", LINES[:1])  # b stopped before a validation
    picture = tmp_path / "both.png"
    assert compared(monkeypatch, a, b, "--plot", picture) == 0
    said = capsys.readouterr().out
    assert "| a | 20 | 1.2500 | 60.25 | 61.50 |" in said
    assert "| b | 1 | 2.3000 | – | – |" in said
    assert picture.stat().st_size > 10_000


def test_runs_of_one_name_are_told_apart(tmp_path, monkeypatch, capsys):
    for seed in ("1", "2"):
        (tmp_path / seed).mkdir()
        a_run(tmp_path / seed / "_a", LINES)
    legends = []
    monkeypatch.setattr(compare_runs.plt, "close", lambda figure: legends.extend(ax.get_legend() for ax in figure.axes))
    folders = [tmp_path / "1/_a", tmp_path / "2/_a"]
    assert compared(monkeypatch, *folders, "--plot", tmp_path / "both.png") == 0
    said = capsys.readouterr()
    assert "| 1/_a | 20 |" in said.out and "| 2/_a | 20 |" in said.out and not said.err
    assert [[text.get_text() for text in legend.get_texts()] for legend in legends] == [["1/_a", "2/_a"]] * 2
    assert compare_runs.names([compare_runs.read(folders[0])] * 2) == ["_a", "_a"]


def test_a_run_that_stopped_in_a_line_or_lost_an_accuracy_is_read(tmp_path, monkeypatch, capsys):
    for name, values in (("a", [61.5, None]), ("b", [None, 60.25]), ("c", [None])):
        lines = [{"split": "val", "step": i, "top1": value} for i, value in enumerate(values)]
        with open(a_run(tmp_path / name, LINES[:2] + lines) / "metrics.jsonl", "a") as file:
            file.write('{"split": "tr')
    runs = [tmp_path / name for name in "abc"]
    assert compared(monkeypatch, *runs, "--plot", tmp_path / "all.png") == 0
    said = capsys.readouterr().out
    assert "1.2500 | – | 61.50 |" in said and "1.2500 | 60.25 | 60.25 |" in said and "1.2500 | – | – |" in said


@pytest.mark.slow
def test_a_run_is_read_as_it_was_written(small_images, here, monkeypatch, capsys):
    train_here(*SMALL, f"data.root={small_images}", "name=a", "max_steps=2", "monitor.every=1")
    assert compared(monkeypatch, "outputs/a") == 0
    assert "| a | 2 | " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "is not a run: it has no metrics.jsonl"),
        ("", "has no training steps in its metrics.jsonl yet"),
        ('{"split": "val", "step": 1, "top1": 10}\n', "has no training steps in its metrics.jsonl yet"),
        ('{"split": "train", "step": 1, "loss": 2.3}\n{"spl\n', "line 2 of"),
        ('{"split": "train", "step": 1}\n', "line 1 of"),
        ('{"split": "test", "step": 1, "loss": 2.3}\n', "line 1 of"),
        ("[1]\n", "line 1 of"),
    ],
)
def test_what_is_no_run_is_refused_in_one_line(content, complaint, tmp_path, monkeypatch, capsys):
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    assert compared(monkeypatch, tmp_path) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and complaint in said and said.count("\n") == 1


@pytest.mark.parametrize("name", ["nowhere/both.png", "both.docx"])
def test_a_picture_that_cannot_be_written_is_refused_in_one_line(name, tmp_path, monkeypatch, capsys):
    assert compared(monkeypatch, a_run(tmp_path / "a", LINES), "--plot", tmp_path / name) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1


def test_the_crash_and_its_cure_differ_in_the_optimizer_only():
    a, b = (flatten(as_container(settings(f"experiment=crash_{optim}"))) for optim in ("adamw", "adamw2"))
    assert {key for key in a | b if a.get(key) != b.get(key)} == {"optim.name"}
    assert (a["optim.name"], b["optim.name"]) == ("adamw", "adamw2")
    assert a["schedule.warmup_epochs"] == 0
