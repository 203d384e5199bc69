"""Mistakes in a study's file."""

import copy
import re

import pytest
import yaml

from engine.errors import UserError
from scripts.studies.study import read_study
from tests.small_study import STUDY, start

WRONG_STUDIES = {
    "needs 'title'": lambda s: s.pop("title"),
    "has 'claim': did you mean claims?": lambda s: s.update(claim=s.pop("claims")),
    "'seeds' of the study must be a list in […], not 2": lambda s: s.update(seeds=2),
    "'seeds' must be whole numbers, such as [0, 1, 2], not []": lambda s: s.update(seeds=[]),
    "'seeds' must be whole numbers, such as [0, 1, 2], not ['a']": lambda s: s.update(seeds=["a"]),
    "the scale gpu needs 'base'": lambda s: s["scales"]["gpu"].pop("base"),
    "the scale laptop needs 'crash_below'": lambda s: s["scales"]["laptop"].pop("crash_below"),
    "the scale gpu has no list 'ours': did you mean our?": lambda s: s["scales"]["gpu"].update(
        our=s["scales"]["gpu"].pop("ours")
    ),
    "'sgd' of the axis method must be a list in […], not 'optim=sgd'": lambda s: s["axes"]["method"].update(
        sgd="optim=sgd"
    ),
    "the claim 'AdamW is better' names method=sdg: choose sgd, adamw": lambda s: s["claims"][0]["rule"].update(
        minus={"method": "sdg"}
    ),
    "the claim 'AdamW is better' names the axis 'methd': did you mean method?": lambda s: s["claims"][0]["rule"].update(
        of={"methd": "sgd"}
    ),
    "the claim 'AdamW is better' names lr=0.001: choose 1e-3": lambda s: s["claims"][0]["rule"]["of"].update(lr=0.001),
    "the rule of the claim 'AdamW is better' needs 'least'": lambda s: s["claims"][0]["rule"].pop("least"),
    "has a rule of the kind 'better': choose difference or rescue": lambda s: s["claims"][0]["rule"].update(
        kind="better"
    ),
    "has the column 'top_1': choose top1": lambda s: s["claims"][0]["rule"].update(column="top_1"),
    "'watch' has 'layer': did you mean layers?": lambda s: s["watch"].update(layer=["diversity"]),
    "'watch' needs 'keys'": lambda s: s["watch"].pop("keys"),
    "the watched cell ['sgd'] needs a label for each of method, lr": lambda s: s["watch"].update(cells=[["sgd"]]),
    "the watched cell 3 needs a label for each of method, lr": lambda s: s["watch"].update(cells=[3]),
    "'of' of the rule of the claim 'AdamW is better' must be a mapping": lambda s: s["claims"][0]["rule"].update(
        of="sgd"
    ),
    "the watched cell ['sgd', '1'] names lr=1: choose 1e-3": lambda s: s["watch"].update(cells=[["sgd", "1"]]),
}


@pytest.mark.parametrize("said", WRONG_STUDIES)
def test_a_mistake_in_a_study_file_is_one_line_before_the_first_training(folder, monkeypatch, capsys, said):
    wrong = copy.deepcopy(STUDY)
    WRONG_STUDIES[said](wrong)
    (folder / "small.yaml").write_text(yaml.safe_dump(wrong, sort_keys=False))
    assert start(monkeypatch, "small", f"to={folder}/to") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {folder}/small.yaml: ") and said in error and error.count("\n") == 1, error


def test_a_file_that_is_not_yaml_is_named_and_does_not_hide_the_other_studies(folder, monkeypatch, capsys):
    (folder / "broken.yaml").write_text("title: x\nseeds: [0, 1\nscales: {}\n")
    assert start(monkeypatch, "broken") == 2
    assert re.match(rf"error: {folder}/broken.yaml, line \d is not YAML: .*\n$", capsys.readouterr().err)
    assert start(monkeypatch) == 0
    shown = capsys.readouterr().out
    assert "cannot be read" in shown and "A small study" in shown


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("optim.rate=1", "there is no option 'optim.rate': did you mean "),
        ("optim.lr=-1", "optim.lr=-1.0 must be "),
        ("model.num_heads=[5,2]", "stage 1: 5 heads do not divide 12 channels"),
        ("model=lipsformer_swin", "model=lipsformer_swin is unknown: "),
        ("optim.clip=agc", "optim.clip: 'agc' is not a number"),
    ],
)
def test_a_mistake_in_the_last_cell_is_found_before_the_first_is_trained(option, message, folder, monkeypatch, capsys):
    written = copy.deepcopy(STUDY)
    written["axes"]["lr"]["late"] = [option]
    (folder / "late.yaml").write_text(yaml.safe_dump(written, sort_keys=False))
    assert start(monkeypatch, "late", f"to={folder}/to", f"runs={folder}/runs", "data.root=unused", "at_once=1") == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: sgd-late-seed_0: {message}") and said.count("\n") == 1, said
    assert not (folder / "runs").exists() and not list((folder / "to").rglob("*.csv"))


def test_a_mistake_in_a_watched_training_is_found_before_any(folder, monkeypatch, capsys):
    written = copy.deepcopy(STUDY)
    written["watch"]["options"] = ["monitor.evry=1"]
    (folder / "late.yaml").write_text(yaml.safe_dump(written, sort_keys=False))
    assert start(monkeypatch, "late", f"to={folder}/to", f"runs={folder}/runs", "data.root=unused", "at_once=1") == 2
    assert "there is no option 'monitor.evry': did you mean monitor.every?" in capsys.readouterr().err
    assert not (folder / "runs").exists()


def test_a_study_has_the_common_scales_and_may_have_its_own(folder):
    (folder / "scales").mkdir()
    sizes = {"crash_below": 1.0, "base": ["epochs=3"], "ours": ["optim=lion"]}
    for name in ("laptop", "imagenet"):
        (folder / f"scales/{name}.yaml").write_text(yaml.safe_dump(sizes))
    written = copy.deepcopy(STUDY) | {"base": ["seed=9", "$ours"]}
    (folder / "small.yaml").write_text(yaml.safe_dump(written, sort_keys=False))
    assert read_study("small", "imagenet").base == ("epochs=3", "seed=9", "optim=lion")
    assert read_study("small", "laptop").base[-3:] == ("max_steps=6", "seed=9", "optim=adamw"), "its own laptop"
    (folder / "scales/laptop.yaml").write_text("base: [")
    with pytest.raises(UserError, match=r"scales/laptop\.yaml, line 1 is not YAML"):
        read_study("small", "imagenet")
