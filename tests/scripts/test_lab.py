"""The lab: a study's grid through the real train.py, its table, its verdicts, and the theory at initialisation."""

import csv
import itertools
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from engine.device import default_workers
from engine.errors import UserError
from scripts.studies import study, training
from scripts.studies.results import Results
from scripts.studies.study import read_study
from scripts.studies.watch import read_seen, watched_cells
from tests.runs import PROJECT, cached_settings, environment
from tests.small_study import STUDY, start


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
    assert capsys.readouterr().out.count("warning: no watched training has the number 'sigma_mox'\n") == 1
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
    (run_dir,) = (folder / "runs/small").glob("adamw-1e-3-seed_1-*")
    log = (run_dir / "train.log").read_text()
    assert log.count("run: 1 epochs") == 2, "it was trained twice, from its first step"
    assert not list((folder / "runs").rglob("*.pt")) and "data.root" not in table.read_text()
    # The watched training has its instruments on, and is not trained again.
    seen = read_seen(folder / "to/small/watched.csv")
    assert {entry.training for entry in seen} == {"sgd, 1e-3"}
    steps = {key: [entry.step for entry in seen if entry.key == key] for key in dict.fromkeys(e.key for e in seen)}
    assert steps.pop("loss") == [1, 2, 4, 6] and steps.pop("sigma_max") == [6]
    assert len(steps) > 1 and all(key.startswith("diversity/") and at == [6] for key, at in steps.items())
    assert (folder / "to/small/watched.png").is_file() and (folder / "to/small/layers_diversity.png").is_file()
    assert "layers_diversity.png" in (folder / "to/small/README.md").read_text()
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
    longer = ("epochs=9", "max_steps=60", "part=1/2", "+callbacks.slow=tests.small_study.Slow")
    arguments = ("small", f"data.root={small_images}", f"to={folder}/to", f"runs={folder}/runs", *longer)
    starting = [sys.executable, "-c", program, *arguments]
    first = subprocess.Popen(starting, cwd=PROJECT, env=environment(), stderr=subprocess.PIPE, text=True)
    found: list[Path] = []
    while first.poll() is None and not (found and found[0].read_text().count("\n") > 5):
        found = [*(folder / "runs/small").glob("sgd-1e-3-seed_0-*/metrics.jsonl")]
        time.sleep(0.05)
    (metrics,) = found
    first.send_signal(number)
    first.wait()
    (folder / "runs/go").touch()
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
        (("small", "part=3/2"), "part=3/2 must be K/N, with K from 1 to N"),
        (("small", "bororw=true"), "there is no argument 'bororw': did you mean borrow?"),
        (("small", "seed=7"), "seed cannot be typed here: the lab sets it for each training"),
        (("small", "phase=init"), "the study small has no phase=init"),
        (
            ("small", "optim.lr=1", "optim=sgd"),
            "the cells sgd-1e-3-seed_0 and adamw-1e-3-seed_0 of small",
        ),
        (("small", "fast"), "fast is no argument: type NAME=VALUE"),
        (("small", "at_once=0"), "at_once=0 must be a whole number above 0"),
    ):
        assert start(monkeypatch, *arguments, *places) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: {message}") and said.count("\n") == 1, said


@pytest.mark.parametrize("name", sorted(path.stem for path in (PROJECT / "conf/study").glob("*.yaml")))
def test_every_study_composes_and_its_rules_name_labels_that_exist(name):
    for scale in ("laptop", "gpu", "imagenet"):
        found = read_study(name, scale)
        cells = found.cells()
        assert len({cell.name for cell in cells}) == len({cell.options for cell in cells}) == len(cells)
        for cell in cells[: len(cells) // len(found.seeds) : 7]:
            cached_settings(*cell.options, "data.root=unused")
        assert len(watched_cells(found)) == len(found.watch.get("cells", ()))
        for claim in found.claims:
            for place in (claim["rule"].get(side, {}) for side in ("of", "minus")):
                assert all(str(label) in found.axes[axis] for axis, label in place.items()), claim


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\n", "has no column 'method'"),
        ("{header}\nsgd,1e-3,0\n", "line 2, is not a whole row"),
        ("\x00\udcff", "cannot be read"),
        ("{header}\nsgd,1e-3,0,a,b,c,d,e,f,g,h,i,j,k,l,m\n", "line 2: top1 is 'a', no number"),
    ],
)
def test_a_damaged_table_is_named(folder, monkeypatch, capsys, text, said):
    table = Results(folder / "to/small/results.csv", read_study("small"))
    table.path.parent.mkdir(parents=True)
    text = text.format(header=",".join(table.columns))
    table.path.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert start(monkeypatch, "small", f"to={folder}/to", "phase=report") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {table.path}") and said in error and error.count("\n") == 1, error


def test_a_try_out_with_other_options_keeps_the_rows_and_has_pages_without_their_pictures(folder, monkeypatch):
    full, short = read_study("small"), read_study("small", more=("max_steps=2", "max_workers=0"))
    results = Results(folder / "to/small/results.csv", full)
    cell, other = full.cells()[0], short.cells()[0]
    assert "max_steps=2" in other.recipe and "max_workers" not in other.recipe and cell.run_name != other.run_name
    for one, top1 in ((cell, "50.0"), (other, "20.0")):
        results.add(
            dict.fromkeys(results.columns, "1") | one.place | {"seed": "0", "top1": top1, "options": one.recipe}
        )
    assert [row["top1"] for row in results.of_study()] == ["50.0"]
    assert [row["top1"] for row in Results(results.path, short).of_study()] == ["20.0"]
    to = f"to={folder}/to"
    assert start(monkeypatch, "small", to, "phase=report", "max_steps=2") == 0
    assert "`python scripts/lab.py small max_steps=2` wrote" in (folder / "to/small/README.md").read_text()
    assert start(monkeypatch, "small", to, "phase=report", "scale=gpu") == 0
    page = (folder / "to/small/gpu/README.md").read_text()
    assert "scripts/lab.py small scale=gpu" in page and "0 of 4 trainings" in page and "map.png" not in page


def test_an_axis_is_not_called_as_another_column(folder):
    found = read_study("small")
    for name in ("options", "seed", "top1"):
        axes = {name: found.axes["method"], "lr": found.axes["lr"]}
        with pytest.raises(UserError, match=f"the axis '{name}' of small has the name of a column of results.csv"):
            Results(folder / "results.csv", study.Study(**{**vars(found), "axes": axes}))


def test_a_training_that_is_done_again_replaces_its_row_and_no_other(folder):
    found = read_study("small")
    results = Results(folder / "results.csv", found)
    empty = dict.fromkeys(results.columns, "")
    first, second = (empty | c.place | {"seed": "0", "options": c.recipe, "top1": "5"} for c in found.cells()[:2])
    for row in (second, first, first | {"top1": "6"}):
        results.add(row)
    assert results.rows() == [first | {"top1": "6"}, second]


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
    axes = {"how": {"A": ["optim.lr=1e-3", "optim=adamw"]}, "size": {"full": []}}
    other = STUDY | {"axes": axes, "claims": [], "watch": {}}
    (folder / "other.yaml").write_text(yaml.safe_dump(other, sort_keys=False))
    cell = read_study("other").cells()[1]
    table = Results(folder / "to/other/results.csv", read_study("other"))
    table.add(dict.fromkeys(table.columns, "7") | cell.place | {"seed": "1", "options": cell.recipe})
    (folder / "to/language").mkdir()
    (folder / "to/language/results.csv").write_text("loss\n2.0\n")  # no study's
    own = Results(folder / "to/small/results.csv", read_study("small"))
    assert own.borrow(own.study.cells(), lambda row: row["commit"] != "7") == 0
    assert own.borrow(own.study.cells()) == 1 and own.borrow(own.study.cells()) == 0
    row = rows_of(folder)[0]
    assert (row["method"], row["lr"], row["seed"], row["top1"]) == ("adamw", "1e-3", "1", "7")
    assert len(own.missing(own.study.cells())) == 3 and own.of_study() == [row]


def test_rows_of_commits_that_git_does_not_know_are_not_called_older(folder, monkeypatch, capsys):
    """As in a clone without history, or an image without git."""
    found = read_study("small")
    table = Results(folder / "to/small/results.csv", found)
    cell = found.cells()[0]
    table.add(dict.fromkeys(table.columns, "1") | cell.place | {"seed": "0", "options": cell.recipe})
    for known, older in ((None, False), ((), True)):
        monkeypatch.setattr("scripts.lab.rules_at", lambda commit, study, known=known: known)
        assert start(monkeypatch, "small", f"to={folder}/to", "phase=report") == 0
        assert ("older than the present rules" in (folder / "to/small/README.md").read_text()) == older


def test_each_training_has_a_gpu_of_its_own_and_a_share_of_the_cores(tmp_path, monkeypatch):
    """Four trainings, two at a time on two GPUs. A small program stands for train.py; it says what it was given."""
    (tmp_path / "train.py").write_text(
        "import json, os, pathlib, sys, time\n"
        "given = dict(argument.split('=', 1) for argument in sys.argv[1:])\n"
        "folder = pathlib.Path(given['output_dir']); folder.mkdir(parents=True)\n"
        "seen = {'gpu': os.environ['CUDA_VISIBLE_DEVICES'], 'workers': given['max_workers'], 'from': time.time()}\n"
        "time.sleep(0.5)\n"
        "(folder / 'seen.json').write_text(json.dumps(seen | {'to': time.time()}))\n"
        "line = {'split': 'train', 'loss': 1.0}\n"
        "(folder / 'metrics.jsonl').write_text(json.dumps(line))\n"
    )
    monkeypatch.setattr(training, "PROJECT", tmp_path)
    cells = [study.Cell({"method": f"m{i}"}, 0, ("lr=1",)) for i in range(4)]
    trainer = training.Trainer(tmp_path / "runs", 15.0, 1, gpus=["GPU-a", "3"])
    assert len(list(trainer.train_all(cells, at_once=2))) == 4
    seen = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("runs/*/seen.json"))]
    assert {one["workers"] for one in seen} == {str(default_workers(2))}
    for gpu in ("GPU-a", "3"):
        times = sorted((one["from"], one["to"]) for one in seen if one["gpu"] == gpu)
        assert times and all(before[1] <= after[0] for before, after in itertools.pairwise(times))


def test_names_of_run_directories_need_no_quotes():
    cell = study.Cell({"optimizer": "AdamW², τ 0.03", "lr": "1e-3"}, 0, ())
    assert cell.name == "AdamW2_tau_0.03-1e-3-seed_0"


def test_the_studies_are_listed(monkeypatch, capsys):
    assert start(monkeypatch) == 0
    shown = capsys.readouterr().out
    assert "postln_preln" in shown and "Pre-LN trains without warm-up" in shown


def test_every_place_has_its_first_seed_before_any_has_its_second():
    study = read_study("replacements")
    seeds = [cell.seed for cell in study.cells()]
    places = len(seeds) // len(study.seeds)
    assert len(study.seeds) > 1 and seeds == [seed for seed in study.seeds for _ in range(places)]
