"""Each run has its own directory: the name of a run, alone and in a sweep."""

from typing import Any

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from engine.errors import UserError
from engine.options.arguments import as_typed
from engine.options.names import output_of, set_name, swept_options
from engine.options.rules import text_options
from engine.options.settings import eval_settings
from tests.runs import composed

TEXT = text_options("train")


def jobs(*typed: str) -> list[tuple[list[str], list[str]]]:
    """For each job that Hydra makes of a sweep: all its options, and the swept ones."""
    arguments = [as_typed(argument, TEXT) for argument in typed]
    (batch,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(arguments), None)
    return [(job, swept_options(job, arguments, is_sweep=True, is_array=False)) for job in batch]


def named(swept: list[str], **given: Any) -> DictConfig:
    """The name and directory of a run."""
    choices = {"model": given.pop("model", "deit_tiny"), "experiment": given.pop("experiment", None)}
    composed = OmegaConf.create({"name": None, "output_dir": None} | given)
    set_name(composed, choices, swept)
    return composed


def names(*typed: str) -> list[str]:
    """The names of the runs of a sweep."""
    found = []
    for job, swept in jobs(*typed):
        given = {o.key_or_group: o.value() for o in OverridesParser.create().parse_overrides(job)}
        chosen = {key: given[key] for key in ("name", "output_dir", "model", "experiment") if key in given}
        found.append(named(swept, **chosen).name)
    return found


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["data.root=d,d2", "epochs=3"], ["deit_tiny-data.root_d", "deit_tiny-data.root_d2"]),
        (["resume=auto,never"], ["deit_tiny-resume_auto", "deit_tiny-resume_never"]),
        (["max_workers=0,2"], ["deit_tiny-max_workers_0", "deit_tiny-max_workers_2"]),
        (["logger.group=1.10,1.1"], ["deit_tiny-logger.group_1.10", "deit_tiny-logger.group_1.1"]),
        (["logger=none,wandb"], ["deit_tiny-logger_none", "deit_tiny-logger_wandb"]),
        (["seed=range(1,3)", "optim.lr=1e-3"], ["deit_tiny-seed_1", "deit_tiny-seed_2"]),
        (["model=swin_tiny,cswin_tiny"], ["swin_tiny", "cswin_tiny"]),
        (["experiment=a,b", "model=swin_tiny"], ["a", "b"]),
        (["experiment=a", "model=swin_tiny,cswin_tiny"], ["a-model_swin_tiny", "a-model_cswin_tiny"]),
        (["name=x", "seed=1,2"], ["x-seed_1", "x-seed_2"]),
        (["name=1.10,1.1"], ["1.10", "1.1"]),
        (["name=x,y", "model=swin_tiny,cswin_tiny"], [f"{n}-model_{m}swin_tiny" for n in "xy" for m in ("", "c")]),
        (["seed=1"], ["deit_tiny"]),
        (["seed=1,2", "seed=3"], ["deit_tiny"]),
        (["seed=3", "seed=1,2"], ["deit_tiny-seed_1", "deit_tiny-seed_2"]),
    ],
    ids=str,
)
def test_a_sweep_names_what_is_swept_and_nothing_else(typed, expected):
    assert names(*typed) == expected


@pytest.mark.parametrize(
    "values",
    [
        "data.root=a/b,a_b,'a b',a:b",
        "optim.betas=[0.9,0.98],[0.9,0.99]",
        "name=x,x-seed_1 seed=1,'1-seed_1'",
        f"data.root={'/long' * 80},{'/long' * 79}/x",
        "data.root='ü','ú','ＡＢ','АВ'",
        f"data.root='{'ü' * 90}','{'ü' * 89}x'",
        "checkpoint.start=/a/last.pt,/b/last.pt",
    ],
)
def test_runs_of_a_sweep_never_share_a_name(values):
    typed = values.split(" ") if "'a b'" not in values else [values]
    found = names(*typed)
    assert len(found) > 1 and len(set(found)) == len(found)
    assert all(len(name.encode()) <= 128 for name in found)
    longer = names(*(f"{argument},'one more'" for argument in typed))
    assert set(found) <= set(longer), "a run keeps its name when the sweep gets more values"


def test_many_swept_options_make_a_name_that_fits():
    found = names(*(f"optim.some_option_of_{'great' * 5}_length_{i}={i},{i + 1}" for i in range(3)))
    assert len(set(found)) == 2**3 and max(len(name) for name in found) <= 128


def test_a_sweep_in_a_job_of_an_array_is_named_by_all_options():
    job = ["seed=1", "epochs=3"]
    assert swept_options(job, ["seed=1,2", "epochs=3"], True, True) == job
    for own in ("name=a", "output_dir=a", "output=a.json"):
        assert swept_options([own, *job], [own, "seed=1,2", "epochs=3"], True, True) == ["seed=1"]
        assert swept_options([own, *job], [own, *job], False, True) == [], "its place is the user's choice"


def test_sweeps_in_a_config_file_count():
    """``hydra.sweeper.params`` of a config file is not on the command line."""
    found = [swept_options([f"seed={seed}", "epochs=3"], ["epochs=3"], True, False) for seed in (1, 2)]
    assert [named(swept).name for swept in found] == ["deit_tiny-seed_1", "deit_tiny-seed_2"]


@pytest.mark.parametrize("sweep", ["seed=1,1", "name=a,'a'", "optim.lr=0.001,1e-3", "output_dir=x,./x"])
def test_a_value_given_twice_is_refused(sweep):
    with pytest.raises(UserError, match="twice, so two runs would share one directory"):
        jobs(sweep)


@pytest.mark.parametrize("array", [False, True], ids=["alone", "array"])
def test_a_run_of_its_own_and_one_of_a_slurm_array(array):
    job = ["model=deit_tiny", "seed=3", "data.root=d", "max_workers=2"]
    expected = "deit_tiny-seed_3-data.root_d-max_workers_2" if array else "deit_tiny"
    assert named(swept_options(job, job, False, array)).name == expected
    assert named(swept_options([*job, "name=x"], job, False, array), name="x").name == "x"


def test_an_output_dir_tells_the_runs_of_a_sweep_apart():
    advice = r"every run of the sweep: leave it out, or type 'output_dir=\S*/\$\{name\}'"
    for folder in ("x", "x/${lr}"):
        with pytest.raises(UserError, match=advice):
            named(["seed=1"], output_dir=folder, lr=1)
    assert named(["seed=1"], output_dir="x/${name}").output_dir == "x/deit_tiny-seed_1"
    assert named(["seed=1"], output_dir="x/${seed}", seed=1).output_dir == "x/1"
    assert named(["output_dir=x"], output_dir="x").output_dir == "x"
    with pytest.raises(UserError, match="every run of the sweep"):
        named(["output_dir=x", "seed=1"], output_dir="x")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/../../x", "/abs", "a/", "a//b", " a", "a/b ", "a\nb", "\t", "a\x07", "\udcff", "a/./b"]
)
def test_names_that_are_no_folder_below_outputs(name):
    with pytest.raises(UserError, match=r"^name"):
        named([], name=name)


def test_the_limit_is_in_bytes():
    assert named([], name="x" * 255).output_dir == "outputs/" + "x" * 255
    for name in ("x" * 256, "ü" * 128, "a/" + "x" * 256):
        with pytest.raises(UserError, match=r"^name=.{20}… is too long: a folder name can have at most 255 bytes$"):
            named([], name=name)


def test_subfolders_are_names():
    assert named([], name="tests/first run").output_dir == "outputs/tests/first run"


def test_each_evaluation_of_a_sweep_writes_its_own_file():
    found = [output_of("output", "sub/eval.json", swept) for _, swept in jobs("checkpoint=a.pt,b.pt", "data.root=d")]
    assert found == ["sub/eval-checkpoint_a.pt.json", "sub/eval-checkpoint_b.pt.json"]
    assert output_of("output", "eval.json", []) == "eval.json"
    assert output_of("output", "sub/a.json", ["output=sub/a.json"]) == "sub/a.json"
    typed = composed("model=deit_tiny", "data.root=d", "checkpoint=a.pt", "predictions=p.csv")
    cfg = eval_settings(typed, None, ["model=deit_tiny"], ["data.root=d"])
    assert (cfg.output, cfg.predictions) == ("eval-data.root_d.json", "p-data.root_d.csv")
