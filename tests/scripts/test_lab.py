"""The lab: a study's grid through the real train.py, its table, its verdicts, and the theory at initialisation."""

import csv
import json
import pickle
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import calculate_md5

from data import DataConfig, open_split
from engine.errors import UserError
from scripts import get_cifar10, lab
from scripts.studies import at_init, claims, study, width
from scripts.studies.results import Results
from scripts.studies.study import read_study
from scripts.studies.watch import read_seen, watched_cells
from tests.runs import PROJECT, SMALL, cached_settings, environment

STUDY = {
    "title": "A small study",
    "paper": "a paper",
    "crash_below": 101.0,  # so that every run counts as crashed
    "seeds": [0, 1],
    "scales": {"laptop": [*SMALL, "epochs=1", "max_steps=4"], "gpu": ["epochs=9"]},
    "axes": {"method": {"sgd": ["optim=sgd"], "adamw": [["optim=adamw"]]}, "lr": {"1e-3": ["optim.lr=1e-3"]}},
    "watch": {"keys": ["loss", "sigma_max"], "cells": [["sgd", "1e-3"]]},
    "claims": [
        {
            "says": "AdamW is better",
            "rule": {
                "kind": "difference",
                "of": {"method": "adamw", "lr": "1e-3"},
                "minus": {"method": "sgd", "lr": "1e-3"},
                "least": 90,
            },
        }
    ],
}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with a study called ``small``, where the lab looks for studies."""
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
    monkeypatch.setattr(study, "STUDIES", tmp_path)
    monkeypatch.setattr(lab, "STUDIES", tmp_path)
    return tmp_path


def start(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["lab.py", *arguments])
    return lab.main()


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "to/small/results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_row_that_was_deleted_is_computed_again_and_is_the_same(folder, small_images, monkeypatch, capsys):
    arguments = ("small", f"data.root={small_images}", f"to={folder}/to", f"runs={folder}/runs")
    assert start(monkeypatch, *arguments, "part=1/2") == 0
    assert [(row["method"], row["seed"]) for row in rows_of(folder)] == [("sgd", "0"), ("sgd", "1")]
    assert "not yet run" in capsys.readouterr().out
    assert start(monkeypatch, *arguments) == 0
    before = rows_of(folder)
    places = [("sgd", "0"), ("adamw", "0"), ("sgd", "1"), ("adamw", "1")]
    assert [(row["method"], row["seed"]) for row in before] == places
    assert all(row["crashed"] == "True" and len(row["data"]) == 12 and float(row["last_loss"]) > 0 for row in before)
    page = (folder / "to/small/README.md").read_text()
    assert "**not confirmed**" in page and "4 of 4 trainings" in page and "2 crashed" in page
    assert (folder / "to/small/map.png").is_file()

    table = folder / "to/small/results.csv"
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(line for line in lines if not line.startswith("adamw,1e-3,1,")))
    capsys.readouterr()
    assert start(monkeypatch, *arguments) == 0
    assert re.findall(r"^\S+-seed_\d", capsys.readouterr().out, re.MULTILINE) == ["adamw-1e-3-seed_1"]
    untimed = [[{k: v for k, v in row.items() if k != "seconds"} for row in rows] for rows in (before, rows_of(folder))]
    assert untimed[0] == untimed[1]
    log = (folder / "runs/small/adamw-1e-3-seed_1/train.log").read_text()
    assert log.count("run: 1 epochs") == 2, "it was trained twice, from its first step"
    assert not list((folder / "runs").rglob("*.pt")) and "data.root" not in table.read_text()
    # The watched training has its instruments on, and is not trained again.
    seen = read_seen(folder / "to/small/watched.csv")
    assert {(entry.training, entry.key) for entry in seen} == {("sgd, 1e-3", "loss")}, "no reading before step 6"
    assert [entry.step for entry in seen] == [1, 2, 4] and (folder / "to/small/watched.png").is_file()
    when = (folder / "to/small/watched.csv").stat().st_mtime_ns
    assert start(monkeypatch, *arguments, "phase=watch") == 0
    assert (folder / "to/small/watched.csv").stat().st_mtime_ns == when


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_lab_that_is_stopped_goes_on_in_the_middle_of_a_training(number, folder, small_images):
    """SIGTERM: the trainings save their steps. SIGKILL: they go on alone, and the same command waits for them."""
    program = (
        "import sys; from pathlib import Path; from scripts.studies import study; from scripts import lab; "
        f"study.STUDIES = lab.STUDIES = Path('{folder}'); sys.exit(lab.main())"
    )
    longer = ("epochs=9", "max_steps=60", "part=1/2")
    arguments = ("small", f"data.root={small_images}", f"to={folder}/to", f"runs={folder}/runs", *longer)
    starting = [sys.executable, "-c", program, *arguments]
    first = subprocess.Popen(starting, cwd=PROJECT, env=environment(), stderr=subprocess.PIPE, text=True)
    metrics = folder / "runs/small/sgd-1e-3-seed_0/metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (metrics.is_file() and metrics.read_text().count("\n") > 5):
        time.sleep(0.05)
    first.send_signal(number)
    first.wait(120)
    assert not (folder / "to/small/results.csv").exists()
    if number == signal.SIGTERM:
        assert first.returncode == 130 and first.stderr.read().endswith("stopped: the same command goes on\n")
    done = subprocess.run(starting, cwd=PROJECT, env=environment(), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert "continuing from step" in (metrics.parent / "train.log").read_text()
    steps = [line["step"] for line in map(json.loads, metrics.read_text().splitlines()) if line["split"] == "train"]
    assert steps == list(range(1, 61)) and len(rows_of(folder)) == 2


def test_a_mistake_in_an_option_is_one_line(folder, monkeypatch, capsys):
    places = (f"to={folder}/to", f"runs={folder}/runs")
    for arguments, message in (
        (("smal",), "there is no study 'smal': did you mean small"),
        (("small", "phase=ini"), "phase=ini is unknown: choose all, init, train, watch, report"),
        (("small", "scale=huge"), "the study small has no scale=huge: choose laptop, gpu"),
        (("small", "part=3/2"), "part=3/2 must be two numbers such as 3/8"),
        (("small", "fast"), "fast is no argument: type NAME=VALUE"),
        (("small", "at_once=0"), "at_once=0 must be a whole number above 0"),
    ):
        assert start(monkeypatch, *arguments, *places) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: {message}") and said.count("\n") == 1, said
    # A mistake in an option of the trainings is found by the first one.
    assert start(monkeypatch, "small", *places, "optim.rate=1", "data.root=unused", "at_once=1") == 2
    assert re.match(r"error: the cell sgd-1e-3-seed_0 cannot be trained: .*optim\.rate", capsys.readouterr().err)
    assert not list((folder / "to").rglob("*.csv"))


@pytest.mark.parametrize("name", sorted(path.stem for path in (PROJECT / "conf/study").glob("*.yaml")))
def test_every_study_composes_and_its_rules_name_labels_that_exist(name):
    for scale in yaml.safe_load((PROJECT / f"conf/study/{name}.yaml").read_text())["scales"]:
        found = read_study(name, scale)
        cells = found.cells()
        assert len({cell.name for cell in cells}) == len({cell.options for cell in cells}) == len(cells)
        for cell in cells[: len(cells) // len(found.seeds) : 7]:
            cached_settings(*cell.options, "data.root=unused")
        assert len(watched_cells(found)) == len(found.watch.get("cells", ()))
        for claim in found.claims:
            for place in (claim["rule"].get(side, {}) for side in ("of", "minus")):
                assert all(str(label) in found.axes[axis] for axis, label in place.items()), claim


def made_rows(values: dict[tuple[str, str], list[float]]) -> list[dict[str, str]]:
    """Rows of a grid of methods and rates; less than 15 % is a crash."""
    return [
        {"method": method, "lr": lr, "seed": str(seed), "top1": str(top1), "crashed": str(top1 < 15)}
        for (method, lr), found in values.items()
        for seed, top1 in enumerate(found)
    ]


@pytest.mark.parametrize(
    ("better", "verdict"),
    [
        ([62.0, 63.0, 64.0], "confirmed"),  # 12, 12, 12 more
        ([62.0, 53.0, 66.0], "partly"),
        ([52.0, 53.0, 54.0], "not confirmed"),
        ([62.0], "not yet run"),
    ],
)
def test_a_difference_is_judged_by_its_interval(better, verdict):
    rows = made_rows({("a", "1"): better, ("b", "1"): [50.0, 51.0, 52.0]})
    rule = {"kind": "difference", "of": {"method": "a", "lr": 1}, "minus": {"method": "b", "lr": 1}, "least": 5}
    assert claims.judge({"says": "", "rule": rule}, rows).verdict == verdict


@pytest.mark.parametrize(
    ("plain", "rescued", "verdict"),
    [
        ([10.0, 10.0], [59.0, 59.5], "confirmed"),
        ([10.0, 10.0], [50.0, 51.0], "partly"),
        ([10.0, 30.0], [59.0, 59.5], "not confirmed"),
    ],
)
def test_a_rescue_needs_a_rate_at_which_every_seed_of_the_other_crashes(plain, rescued, verdict):
    rows = made_rows(
        {("plain", "1"): [60.0, 60.0], ("plain", "2"): plain, ("a", "1"): [40.0, 41.0], ("a", "2"): rescued}
    )
    rule = {"kind": "rescue", "axis": "method", "over": "lr", "fails": "plain", "hold": ["a"], "points": 2}
    assert claims.judge({"says": "", "rule": rule}, rows).verdict == verdict


def test_a_rescuer_must_be_as_good_as_the_other_at_its_best_rate():
    rows = made_rows({("plain", "1"): [60.0], ("plain", "2"): [10.0], ("a", "1"): [40.0], ("a", "2"): [40.0]})
    rule = {"kind": "rescue", "axis": "method", "over": "lr", "fails": "plain", "hold": ["a"], "points": 2}
    assert claims.judge({"says": "", "rule": rule}, rows).verdict == "partly"
    assert claims.judge({"says": "", "rule": rule | {"hold": ["b"]}}, rows).verdict == "not yet run"


def test_a_rescue_on_one_seed_is_not_yet_confirmed():
    crashing = {("plain", "1"): [60.0, 60.0], ("plain", "2"): [10.0, 10.0]}
    rows = made_rows(crashing | {("a", "1"): [60.0], ("a", "2"): [60.0]})
    rule = {"kind": "rescue", "axis": "method", "over": "lr", "fails": "plain", "hold": ["a"], "points": 2}
    found = claims.judge({"says": "", "rule": rule}, rows)
    assert found.verdict == "not yet run" and found.evidence.startswith("too few seeds; best means")


def test_a_run_that_diverged_counts_as_a_crash_in_a_difference():
    rows = made_rows({("a", "1"): [50.0, 50.0], ("b", "1"): [45.0, 45.0]})
    rows[2]["top1"] = rows[3]["top1"] = ""
    rule = {"kind": "difference", "of": {"method": "a"}, "minus": {"method": "b"}, "least": 30}
    found = claims.judge({"says": "", "rule": rule}, rows, diverged=15.0)
    assert (found.verdict, found.evidence[:13]) == ("confirmed", "+35.00 points")


def test_a_difference_may_be_one_of_losses():
    rows = made_rows({("a", "1"): [50.0, 50.0], ("b", "1"): [50.0, 50.0]})
    for row, loss in zip(rows, ("1.0", "1.2", "1.5", "1.6"), strict=True):
        row["last_loss"] = loss
    rule = {"kind": "difference", "column": "last_loss", "of": {"method": "b"}, "minus": {"method": "a"}, "least": 0}
    assert claims.judge({"says": "", "rule": rule}, rows).evidence == "+0.45, +0.40 to +0.50 (2 seeds)"


@pytest.mark.parametrize(
    ("means", "shown"),
    [
        ([50.0, 60.0, 59.0, 10.0], "1.2"),  # 0.2 of the first octave, the second, 1/49 of the third
        ([60.0, 59.0, 59.0, 58.0], "≥ 3.0"),
        ([10.0, 60.0, 10.0, 10.0], "0.1"),
        ([10.0, 10.0, 10.0, 60.0], "≥ 0.0"),
    ],
)
def test_the_width_of_good_rates_is_interpolated(means, shown):
    assert str(width.width([1e-3, 2e-3, 4e-3, 8e-3], means)) == shown


def test_only_rows_that_were_run_at_every_rate_have_a_width(folder):
    found = read_study("small")
    rates = replace(found, axes=found.axes | {"lr": {"1e-3": (), "2e-3": ()}})
    rows = made_rows({("sgd", "1e-3"): [50.0], ("sgd", "2e-3"): [50.0], ("adamw", "1e-3"): [50.0]})
    assert {place: str(value) for place, value in width.widths(rates, rows).items()} == {("sgd",): "≥ 1.0"}
    assert width.widths(replace(found, axes={"lr": found.axes["lr"], "method": found.axes["method"]}), rows) == {}


def test_an_interval_of_equal_values_is_a_point_and_a_wider_spread_is_wider():
    assert claims.interval([3.0, 3.0, 3.0]) == (3.0, 3.0)
    low, high = claims.interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert 1.0 <= low < 2.5 and 3.5 < high <= 5.0


def test_an_unknown_rule_is_refused():
    with pytest.raises(UserError, match="'better' is unknown"):
        claims.judge({"says": "", "rule": {"kind": "better"}}, [])


def test_the_gradients_at_initialisation_have_the_slopes_of_the_theory(tmp_path):
    """A small form of ``phase=init``: the first two claims of the study, at fewer depths and seeds."""
    full = read_study("postln_preln")
    init = full.init | {
        "depths": [4, 16],
        "first_seed": 0,
        "seeds": 8,
        "batches": 2,
        "models": {"theory": full.init["models"]["theory"]},
    }
    init["models"]["theory"] |= {"embed_dim": 64}
    rules = [claim | {"rule": claim["rule"] | {"within": 0.4}} for claim in full.init["claims"][:2]]  # few seeds
    small = study.Study(**{**vars(full), "init": init | {"claims": rules}})
    found = at_init.verdicts_at_init(small, tmp_path, measure=True)
    assert [verdict.verdict for verdict in found] == ["confirmed", "confirmed"], found
    assert len((tmp_path / "at_init.csv").read_text().splitlines()) == 1 + 2 * 8 * (4 + 16)
    assert (tmp_path / "at_init.png").is_file()
    assert at_init.verdicts_at_init(small, tmp_path) == found


def test_a_prediction_outside_the_interval_is_not_confirmed():
    rule = {"kind": "slope over depths", "model": "m", "position": "pre", "predicts": -0.5, "rival": 0.0}
    rows = [
        at_init.Measured("m", "pre", depth, seed, depth, 1.0 + 0.01 * seed, 1.0, "")
        for depth in (2, 4)
        for seed in (0, 1)
    ]
    assert at_init._judge("", rule, rows).verdict == "not confirmed"


def test_results_of_other_options_do_not_count(folder):
    found = read_study("small")
    results = Results(folder / "results.csv", found)
    cell = found.cells()[0]
    row = dict.fromkeys(results.columns, "") | cell.place | {"seed": "0", "options": cell.recipe}
    results.add(row)
    assert results.missing(found.cells()) == found.cells()[1:] and results.of_study() == [row]
    elsewhere = Results(folder / "results.csv", read_study("small", more=("data.root=/elsewhere",)))
    assert elsewhere.of_study() == [row], "where the images are decides nothing"
    other = Results(folder / "results.csv", read_study("small", "gpu"))
    assert other.missing(other.study.cells()) == other.study.cells() and other.of_study() == []


def test_a_study_takes_the_rows_of_the_same_trainings_from_another(folder, monkeypatch, capsys):
    """Whatever the other calls them, in whatever order its options are."""
    other = STUDY | {"axes": {"how": {"A": ["optim.lr=1e-3", "optim=adamw"]}, "size": {"full": []}}}
    (folder / "other.yaml").write_text(yaml.safe_dump(other, sort_keys=False))
    cell = read_study("other").cells()[1]
    table = Results(folder / "to/other/results.csv", read_study("other"))
    table.add(dict.fromkeys(table.columns, "7") | cell.place | {"seed": "1", "options": cell.recipe})
    own = Results(folder / "to/small/results.csv", read_study("small"))
    assert own.borrow(own.study.cells()) == 1 and own.borrow(own.study.cells()) == 0
    row = rows_of(folder)[0]
    assert (row["method"], row["lr"], row["seed"], row["top1"]) == ("adamw", "1e-3", "1", "7")
    assert len(own.missing(own.study.cells())) == 3 and own.of_study() == [row]


def test_names_of_run_directories_need_no_quotes():
    cell = study.Cell({"optimizer": "AdamW², τ 0.03", "lr": "1e-3"}, 0, ())
    assert cell.name == "AdamW2_tau_0.03-1e-3-seed_0"


@pytest.fixture
def port(tmp_path):
    """The port of a web server for the files of the test's folder."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_cifar10_becomes_class_folders(tmp_path, monkeypatch, port):
    """An archive in the official form, two images a class, from a server of the test."""
    batches = tmp_path / "cifar-10-batches-py"
    batches.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 3 * 32 * 32), dtype=np.uint8)
    labels = [i % 10 for i in range(20)]
    for name in ("data_batch_1", "test_batch"):
        (batches / name).write_bytes(pickle.dumps({"data": pixels, "labels": labels}))
    names = [f"class{i}" for i in range(10)]
    (batches / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    with tarfile.open(tmp_path / "made.tar.gz", "w:gz") as archive:
        archive.add(batches, batches.name)
    md5 = {path.name: calculate_md5(path) for path in (*batches.iterdir(), tmp_path / "made.tar.gz")}
    monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{port}/made.tar.gz")
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5["made.tar.gz"])
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", md5["data_batch_1"]]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5["test_batch"]]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": md5["batches.meta"]}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    monkeypatch.setattr(sys, "argv", ["get_cifar10.py", str(tmp_path / "to")])
    assert get_cifar10.main() == 0
    assert len(open_split(DataConfig(name="cifar10", root=str(tmp_path / "to"), crop=32), "val").source) == 20
    written = np.asarray(Image.open(tmp_path / "to/train/class3/00013.jpg"), dtype=float)
    assert np.abs(written - pixels[13].reshape(3, 32, 32).transpose(1, 2, 0)).mean() < 12  # noise is hard for JPEG
    assert get_cifar10.main() == 2, "the folder is not empty"
    monkeypatch.setattr(CIFAR10, "tgz_md5", "0" * 32)
    monkeypatch.setattr(sys, "argv", ["get_cifar10.py", str(tmp_path / "other")])
    assert get_cifar10.main() == 2


def test_the_studies_are_listed(monkeypatch, capsys):
    assert start(monkeypatch) == 0
    shown = capsys.readouterr().out
    assert "postln_preln" in shown and "Pre-LN trains without warm-up" in shown


@pytest.mark.parametrize(
    "table", sorted((PROJECT / "docs/lab").glob("*/*.csv")), ids=lambda path: f"{path.parent.name}"
)
def test_the_rules_of_a_study_are_older_than_its_rows(table):
    """At the commit of every row, the study file had the claims and rules that it has now."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=PROJECT, capture_output=True, text=True)
        return done.stdout if done.returncode == 0 else ""

    if not git("rev-parse", "--git-dir"):
        pytest.skip("this is no git repository, so it has no commits")
    file = f"conf/study/{table.parent.name}.yaml"
    with table.open(newline="") as rows:
        commits = {row["commit"] for row in csv.DictReader(rows)}
    now = yaml.safe_load((PROJECT / file).read_text())
    assert commits
    for commit in commits:
        then = yaml.safe_load(git("show", f"{commit.rstrip('+')}:{file}"))
        if table.stem == "at_init":
            assert then["init"]["claims"] == now["init"]["claims"]
        else:
            assert then["claims"] == now["claims"]
