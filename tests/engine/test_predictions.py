"""The file with the model's answer for every image."""

import contextlib
import csv
import json
from pathlib import Path

import numpy as np
import pytest

from data import DataConfig, EvalSetsConfig
from data.sets.eval_sets import EvalImages
from data.sources.synthetic import SyntheticSource
from engine.evaluation.predictions import write_predictions
from engine.evaluation.score_files import predictions_path
from engine.options.config import EvalConfig
from tests.runs import SMALL, run, run_here, train_here


@pytest.fixture(scope="module")
def trained(small_images, tmp_path_factory):
    """A folder with a run of a few steps in outputs/a."""
    folder = tmp_path_factory.mktemp("trained")
    with contextlib.chdir(folder):
        train_here(*SMALL, f"data.root={small_images}", "name=a", "max_steps=3")
    return folder


def rows(path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


OPTIONS = ("checkpoint=outputs/a/checkpoints/last.pt", "device=cpu", "max_workers=0")


def test_it_has_every_image_once_and_agrees_with_the_scores(trained):
    done = run_here("eval.py", *OPTIONS, "predictions=p.csv", cwd=trained)
    assert done.returncode == 0, done.stderr
    assert "the predictions are in p.csv" in done.stdout
    found, scores = rows(trained / "p.csv"), json.loads((trained / "eval.json").read_text())
    assert len({row["path"] for row in found}) == len(found) == scores["images"]
    right = [row["label"] == row["top1"] for row in found]
    assert 100 * sum(right) / len(right) == pytest.approx(scores["top1"])
    among_five = [row["label"] in [row[f"top{i}"] for i in range(1, 6)] for row in found]
    assert 100 * sum(among_five) / len(among_five) == pytest.approx(scores["top5"])
    for row in found:
        shares = [float(row[f"p{i}"]) for i in range(1, 6)]
        assert shares == sorted(shares, reverse=True) and sum(shares) <= 1.001
        assert f"/{row['name']}/" in row["path"], "the name is that of the image's folder"


def test_answers_are_classes_of_the_model_also_where_it_chooses_among_a_part_of_them(tmp_path):
    """As for ImageNet-A, with 200 of the 1000 classes. An image may have several right answers, or none."""
    answers, classes = np.array([[0, -1], [1, 2], [-1, -1]]), np.array([2, 5, 7])
    images = EvalImages(DataConfig(name="any"), SyntheticSource(3, 3, 8), answers, classes)
    best = np.array([[2, 0], [1, 2], [0, 1]])
    write_predictions(tmp_path / "p.csv", images, best, np.array([[0.75, 0.25]] * 3), list("abcdefgh"))
    found = rows(tmp_path / "p.csv")
    assert [(row["label"], row["name"]) for row in found] == [("2", "c"), ("5 7", "f h"), ("", "")]
    assert [row["top1"] + row["name1"] for row in found] == ["7h", "5f", "2c"]
    assert [row["top2"] + row["name2"] for row in found] == ["2c", "7h", "5f"]


def test_names_stay_as_they_are(tmp_path):
    """Also those that a spreadsheet takes for a formula: other programs join tables by these names."""
    names = ["=1+1", "@a", '-2,"b"\n']
    images = EvalImages(DataConfig(name="any"), SyntheticSource(3, 3, 8), np.arange(3), None)
    write_predictions(tmp_path / "p.csv", images, np.arange(3)[:, None], np.ones((3, 1)), names)
    assert [(row["name"], row["name1"]) for row in rows(tmp_path / "p.csv")] == [(name, name) for name in names]


@pytest.mark.slow
def test_several_processes_write_the_rows_of_one(trained):
    for processes, file in ((1, "one.csv"), (2, "two.csv")):
        done = run("eval.py", *OPTIONS, "amp=fp32", f"predictions={file}", cwd=trained, processes=processes)
        assert done.returncode == 0, done.stderr
    one, two = (rows(trained / name) for name in ("one.csv", "two.csv"))
    assert [row["path"] for row in one] == [row["path"] for row in two]
    assert [row["top1"] for row in one] == [row["top1"] for row in two]


def test_a_place_that_cannot_be_written_is_told_before_the_evaluation(trained):
    done = run_here("eval.py", *OPTIONS, "predictions=nowhere/p.csv", cwd=trained)
    assert done.returncode == 2
    assert "error: predictions=nowhere/p.csv: nowhere/p.csv cannot be written: set predictions to" in done.stderr


def test_a_full_disk_costs_the_answers_and_not_the_scores(trained):
    done = run_here("eval.py", *OPTIONS, "predictions=/dev/full", "output=full.json", cwd=trained)
    assert done.returncode == 2
    assert "/dev/full could not be written (No space left on device): set predictions to another" in done.stderr
    assert json.loads((trained / "full.json").read_text())["images"] == 80


def test_each_of_several_sets_has_a_file_of_its_own():
    cfg = EvalConfig(predictions="out/best.csv", sets=EvalSetsConfig(a="a"))
    assert predictions_path(cfg, "a") == Path("out/best.csv")
    cfg.sets.r = "r"
    assert [predictions_path(cfg, name) for name in ("a", "r")] == [Path("out/best.a.csv"), Path("out/best.r.csv")]


def test_a_benchmark_has_no_answers(here):
    done = run_here("eval.py", "model=deit_tiny", "benchmark=true", "predictions=p.csv", cwd=here)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "leave out predictions" in done.stderr
