"""The picture of several runs, and the pair of experiments that it was made for."""

import json
import sys
from pathlib import Path

import pytest

from engine.options.plain import as_container, flatten, write_settings
from scripts import compare_runs
from tests.runs import SMALL, cached_settings, settings, train_here

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


def test_a_start_that_was_refused_is_left_out(tmp_path, monkeypatch, capsys):
    run, refused = a_run(tmp_path / "a", LINES), tmp_path / "refused"
    refused.mkdir()
    assert compared(monkeypatch, run, refused, "--plot", tmp_path / "both.png") == 0
    said = capsys.readouterr()
    assert "| a | 20 |" in said.out and said.err == f"left out: {refused} has no metrics.jsonl\n"
    assert compared(monkeypatch, refused) == 2
    assert "is not a run: it has no metrics.jsonl" in capsys.readouterr().err


def test_runs_of_one_name_are_told_apart(tmp_path, monkeypatch, capsys):
    for seed in ("1", "2"):
        (tmp_path / seed).mkdir()
        a_run(tmp_path / seed / "_a", LINES)
    legends = []
    monkeypatch.setattr(compare_runs.plt, "close", lambda figure: legends.extend(figure.legends))
    folders = [tmp_path / "1/_a", tmp_path / "2/_a"]
    assert compared(monkeypatch, *folders, "--plot", tmp_path / "both.png") == 0
    said = capsys.readouterr()
    assert "| 1/_a | 20 |" in said.out and "| 2/_a | 20 |" in said.out and not said.err
    assert [[text.get_text() for text in legend.get_texts()] for legend in legends] == [["1/_a", "2/_a"]]
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


def test_the_curves_of_a_sweep_are_told_apart_and_no_legend_covers_them(tmp_path, monkeypatch, capsys):
    runs = [a_run(tmp_path / f"quickstart-optim.lr_{i:04d}-seed_0", LINES) for i in range(12)]
    looks, covered = [], []

    def look(figure) -> None:
        panels = [panel.get_window_extent() for panel in figure.axes]
        covered.extend(legend.get_window_extent().overlaps(panel) for legend in figure.legends for panel in panels)
        looks.extend(
            {f"{line.get_color()} {line._unscaled_dash_pattern}" for line in panel.lines} for panel in figure.axes
        )

    monkeypatch.setattr(compare_runs.plt, "close", look)
    assert compared(monkeypatch, *runs, "--plot", tmp_path / "all.png") == 0
    assert [len(found) for found in looks] == [12, 12] and looks[0] == looks[1]
    assert covered == [False, False]


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


@pytest.mark.parametrize("name", ["nowhere/both.png", "both.docx", "both"])
def test_a_picture_that_cannot_be_written_is_refused_in_one_line(name, tmp_path, monkeypatch, capsys):
    assert compared(monkeypatch, a_run(tmp_path / "a", LINES), "--plot", tmp_path / name) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1


def test_the_crash_and_its_cure_differ_in_the_optimizer_only():
    a, b = (flatten(as_container(settings(f"experiment=crash_{optim}"))) for optim in ("adamw", "adamw2"))
    named = {"name", "output_dir"}
    assert {key for key in a | b if a.get(key) != b.get(key)} - named == {"optim.name"}
    assert (a["optim.name"], b["optim.name"]) == ("adamw", "adamw2")
    assert a["schedule.warmup_epochs"] == 0


def finished(folder: Path, top1: list[float], *overrides: str) -> Path:
    """A run of the quickstart with ten steps an epoch, that has done as many epochs as there are accuracies."""
    lines: list[dict[str, object]] = []
    for epoch, value in enumerate(top1, 1):
        lines.append({"split": "train", "step": 10 * epoch, "epoch": epoch, "loss": 2.0 / epoch})
        lines.append({"split": "val", "step": 10 * epoch, "epoch": epoch, "top1": value, "images": 20})
    a_run(folder, lines)
    write_settings(cached_settings("experiment=quickstart", "epochs=3", *overrides), folder / "config.yaml")
    return folder


@pytest.fixture
def reference(tmp_path, monkeypatch) -> Path:
    """The reference of two runs that end at 79 and 81 %."""
    runs = [finished(tmp_path / f"r{seed}", [60, 70, 79 + 2 * seed], f"seed={seed}") for seed in (0, 1)]
    assert compared(monkeypatch, *runs, "--write-reference", tmp_path / "reference.json") == 0
    return tmp_path / "reference.json"


def test_a_run_is_set_beside_a_reference_at_equal_epochs(reference, tmp_path, monkeypatch, capsys):
    run, picture = finished(tmp_path / "run", [61.5, 70.25], "seed=5"), tmp_path / "both.png"
    drawn, named = [], []

    def keep(figure) -> None:
        drawn.extend(figure.axes)
        named.extend(text.get_text() for text in figure.legends[0].get_texts())

    monkeypatch.setattr(compare_runs.plt, "close", keep)
    assert compared(monkeypatch, run, "--reference", reference, "--plot", picture) == 0
    said = capsys.readouterr().out
    assert "| 1 | 61.50 | 60.00 | +1.50 | 2.0000 | 2.0000 | +0.0000 |" in said
    assert "| 2 | 70.25 | 70.00 | +0.25 | 1.0000 | 1.0000 | +0.0000 |" in said
    assert "\non track: after epoch 2 of 3 top-1 is 70.25 %, the reference had 70.00 %, 70.00 to 70.00 % in 2 r" in said
    assert picture.stat().st_size > 10_000
    assert named == ["run", "reference"]
    (band,) = drawn[1].collections
    assert {(30, 79), (30, 81), (10, 60)} <= {tuple(point) for point in band.get_paths()[0].vertices}


def test_the_reference_s_mean_losses_are_drawn_in_the_middle_of_their_epochs(reference, tmp_path, monkeypatch):
    run, places = finished(tmp_path / "run", [61, 71]), []
    monkeypatch.setattr(
        compare_runs.plt, "close", lambda figure: places.extend(axis.lines[-1].get_xdata() for axis in figure.axes)
    )
    assert compared(monkeypatch, run, "--reference", reference, "--plot", tmp_path / "both.png") == 0
    assert [list(x) for x in places] == [[5, 15, 25], [10, 20, 30]]


def test_a_run_that_is_behind_is_told_so(reference, tmp_path, monkeypatch, capsys):
    run = finished(tmp_path / "run", [60, 69.5, 77.9])
    assert compared(monkeypatch, run, "--reference", reference, "--plot", tmp_path / "a.png") == 0
    assert "\nbehind by 2.1 points, and falling back since epoch 1: after epoch 3 of 3" in capsys.readouterr().out


def refused(monkeypatch, capsys, *arguments: object) -> str:
    """The one line with which a command is refused."""
    capsys.readouterr()
    assert compared(monkeypatch, *arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    return said


def test_a_run_that_has_no_reference_is_refused_in_one_line(reference, tmp_path, monkeypatch, capsys):
    other = finished(tmp_path / "other", [60], "optim.lr=0.001", "epochs=8")
    said = refused(monkeypatch, capsys, other, "--reference", reference)
    assert f"{other} trains something else than {reference}" in said and "epochs 3 → 8, optim.lr 0.004 → 0.001" in said
    fresh = finished(tmp_path / "fresh", [60])
    lines = (fresh / "metrics.jsonl").read_text().splitlines(keepends=True)
    (fresh / "metrics.jsonl").write_text(lines[0])
    assert "has no validation after a whole epoch yet: try again" in refused(
        monkeypatch, capsys, fresh, "--reference", reference
    )
    (fresh / "metrics.jsonl").write_text(lines[0] + '{"split": "val", "step": 10, "top1": 60}\n')
    assert "is damaged: restore it" in refused(monkeypatch, capsys, fresh, "--reference", reference)
    (fresh / "metrics.jsonl").write_text(
        lines[0] + '{"split": "val", "step": 10, "top1": 60, "epoch": 0, "images": 1}\n'
    )
    assert "is damaged: restore it" in refused(monkeypatch, capsys, fresh, "--reference", reference)
    (fresh / "config.yaml").unlink()
    assert "has no config.yaml" in refused(monkeypatch, capsys, fresh, "--reference", reference)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "there is no reference"),
        ("{", "is not a reference, or damaged"),
        ("[1]", "is not a reference, or damaged"),
        ("[" * 100_000, "is not a reference, or damaged"),
        ('{"setting": {"epochs": 1}, "runs": [{"top1": {"1": 1' + "0" * 400 + "}}]}", "is not a reference, or damaged"),
        ('{"setting": {"epochs": 3}, "runs": []}', "is not a reference, or damaged"),
        (
            '{"setting": {"epochs": 3}, "runs": [{"top1": {"1": 5}, "loss": {"1": 2}}]}',
            "is not a reference, or damaged",
        ),
        ('{"setting": {"epochs": 1}, "runs": [{"top1": {"1": null}, "loss": {"1": 2}}]}', "is not a reference"),
    ],
)
def test_what_is_no_reference_is_refused_in_one_line(content, complaint, tmp_path, monkeypatch, capsys):
    if content is not None:
        (tmp_path / "x.json").write_text(content)
    run = finished(tmp_path / "run", [60])
    assert complaint in refused(monkeypatch, capsys, run, "--reference", tmp_path / "x.json")


def test_only_finished_runs_that_differ_in_their_seeds_become_a_reference(tmp_path, monkeypatch, capsys):
    whole, file = finished(tmp_path / "whole", [60, 70, 80]), tmp_path / "x.json"
    half = finished(tmp_path / "half", [60, 70])
    assert "a reference needs finished runs" in refused(monkeypatch, capsys, whole, half, "--write-reference", file)
    other = finished(tmp_path / "other", [60, 70, 80], "batch_size=32")
    said = refused(monkeypatch, capsys, whole, other, "--write-reference", file)
    assert "differ in more than the seed: batch_size 64 → 32" in said
    again = finished(tmp_path / "again", [60, 71, 80])
    assert "again has the seed of another run: only different seeds" in refused(
        monkeypatch, capsys, whole, again, "--write-reference", file
    )
    assert "must end in .json" in refused(monkeypatch, capsys, whole, "--write-reference", tmp_path / "whole")
    assert not file.exists()
