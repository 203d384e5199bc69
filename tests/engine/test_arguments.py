"""Hydra reads what the user typed: text stays text, and the advice in messages can be typed."""

import shlex
from typing import Any

import hydra
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from engine.errors import UserError
from engine.options.arguments import as_typed, in_shell, parsed_by_name, split
from engine.options.config import register
from engine.options.explain import explain
from engine.options.plain import write_settings
from engine.options.rules import text_options
from tests.runs import PROJECT, settings

TEXT = text_options("train")


def read(argument: str) -> Any:
    """The value that Hydra reads from an argument."""
    return OverridesParser.create().parse_override(as_typed(argument, TEXT)).value()


@pytest.mark.parametrize(
    "typed",
    [
        *("2024_11_25", "1.10", "1e3", "0x10", "012", "1_000", "true", "False", "nan", "-inf", "12:30", ".5", "+1"),
        *("a#b", "runs/epoch=3.ckpt", "/tmp/a(b)", "a b", "a{b}", "a[1]", "it's", 'a"b', "$HOME/x", "a&b;c", "ü~!^<>`"),
        *("foo(1)", "~/x", "~/${name}", "C:\\x", "a@b", "]", "100%"),
    ],
)
def test_text_is_taken_as_typed(typed):
    for key in ("name", "data.root", "checkpoint.start", "resume", "logger.project", "+model.name", "experiment"):
        if key != "experiment" or typed[0].isdecimal():
            assert read(f"{key}={typed}") == typed


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        *(("null", None), ("NULL", None), ("", ""), ("'1.10'", "1.10"), ('"a,b"', "a,b"), ("'null'", "null")),
        *((" a ", "a"), ("a\\,b", "a,b"), ("${oc.env:HOME}/1.10", "${oc.env:HOME}/1.10"), ("str(1.10)", "1.10")),
    ],
)
def test_what_hydra_gives_a_meaning_keeps_it(typed, value):
    assert read(f"name={typed}") == value


def test_options_that_are_no_text_are_left_alone():
    for argument in ("epochs=1e3", "optim.betas=[0.9,0.98]", "+model.kwargs.x=1.10", "~optim.lr", "epochs", "", "=x"):
        assert as_typed(argument, TEXT) == argument
    assert read("logger={name:none,project:1.10}") == {"name": "none", "project": "1.10"}
    assert read("checkpoint={every_steps:10,start:1_0}") == {"every_steps": 10, "start": "1_0"}


@pytest.mark.parametrize(
    ("typed", "values"),
    [
        ("1.10,1.20", ["1.10", "1.20"]),
        ("choice(1.10,'1.20')", ["1.10", "1.20"]),
        ("true,null,'a,b'", ["true", None, "a,b"]),
        ("range(1,3)", ["1", "2"]),
    ],
)
def test_each_value_of_a_sweep_is_taken_as_typed(typed, values):
    """For each job of a sweep, Hydra writes the arguments again from the values that it has read."""
    sweep = OverridesParser.create().parse_override(as_typed(f"name={typed}", TEXT))
    jobs = [OverridesParser.create().parse_override(f"name={value}").value() for value in sweep.sweep_string_iterator()]
    assert [value if value is None else str(value) for value in jobs] == values


@pytest.mark.parametrize("typed", ["'a b", '"a', "a,b(c)", "choice(a#b)", "range(1", "a,,b"])
def test_the_advice_for_unclear_text_can_be_typed(typed):
    """The argument in the message is one word for a shell, and Hydra reads exactly the text from it."""
    with pytest.raises(Exception) as caught:
        OverridesParser.create().parse_overrides([as_typed(f"name={typed}", TEXT)])
    message = explain(caught.value, "train", [])
    assert message.startswith(f"name={typed} cannot be read: type ")
    assert in_shell("name", [typed]) in message
    (word,) = shlex.split(in_shell("name", [typed]))
    assert OverridesParser.create().parse_override(word).value() == typed
    assert read(word) == typed


@pytest.mark.parametrize("typed", ["optim.betas=[0.9,null]", "data.mean=[null,0.5,0.5]"])
def test_null_in_a_list_is_refused_by_the_option(typed):
    register()
    with hydra.initialize_config_dir(str(PROJECT / "conf"), version_base="1.3"), pytest.raises(Exception) as caught:
        hydra.compose("train", overrides=[typed])
    assert explain(caught.value, "train", [typed]) == f"{typed.partition('=')[0]} cannot contain null"


def test_flags_may_stand_anywhere():
    assert split(["seed=1", "-m", "name=x", "--config-name", "train", "b=2"]) == (
        ["-m", "--config-name", "train"],
        ["seed=1", "name=x", "b=2"],
    )
    with pytest.raises(UserError, match=r"no flag --epochs=3: options are typed without dashes, epochs=3"):
        split(["--epochs=3"])
    with pytest.raises(UserError, match=r"no flag --clip-grad: options are typed without dashes, optim.clip=…;"):
        split(["--clip-grad", "1.0"])
    with pytest.raises(
        UserError, match=r"no flag --layer-decay=0.7: options are typed without dashes, optim.layer_decay=0.7;"
    ):
        split(["--layer-decay=0.7"])
    with pytest.raises(UserError, match=r"no flag --batch-size: options are typed without dashes, batch_size=…"):
        split(["--batch-size", "128"])  # eval.batch_size is another one
    with pytest.raises(UserError, match=r"no flag --model: options are typed without dashes, model=…"):
        split(["--model", "deit_small"])
    with pytest.raises(UserError, match=r"invalid choice: 'x'"):
        split(["--cfg", "x"])


@pytest.mark.parametrize(("flag", "ours"), [("--experiment", "experiment"), ("--config", "experiment")])
def test_a_flag_of_timm_is_not_the_beginning_of_one_of_hydra(flag, ours, tmp_path):
    """Hydra has --experimental-rerun FILE, which runs the options in a pickled file, and three flags --config-…."""
    for typed in ([flag, str(tmp_path)], [f"{flag}={tmp_path}"]):
        with pytest.raises(UserError, match=rf"no flag {flag}.*: options are typed without dashes, {ours}="):
            split(typed)


def test_values_that_were_typed():
    arguments = [as_typed(argument, TEXT) for argument in ("name=1.10", "optim.betas=[1", "+epochs=3")]
    assert parsed_by_name(arguments) == {"name": "1.10", "epochs": 3}


def test_text_stays_text_on_disk(tmp_path):
    found = settings("data=synthetic", "logger=none")
    for text in ("1.10", "2024_11_25", "1e3", "true", "null", "012", "12:30", "1_000", "0x10", "ü", "~", "a#b", ""):
        found.logger.group = text
        write_settings(found, tmp_path / "config.yaml")
        assert OmegaConf.load(tmp_path / "config.yaml").logger.group == text


def test_a_config_of_the_user_s_own_may_have_a_number_for_a_name(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "2024_11.yaml").write_text("# @package _global_\nepochs: 7\n")
    register()
    typed = [as_typed("experiment=2024_11", TEXT), f"hydra.searchpath=[file://{tmp_path}]"]
    with hydra.initialize_config_dir(str(PROJECT / "conf"), version_base="1.3"):
        assert hydra.compose("train", overrides=typed).epochs == 7
