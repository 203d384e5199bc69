"""Paths in options: the home folder, which paths become absolute, and which options are no paths."""

import os

import pytest
from omegaconf import OmegaConf

from engine.errors import UserError
from engine.options.config import EvalConfig, TrainConfig
from engine.options.paths import resolve_paths
from engine.options.rules import declared

TRAIN = ("output_dir", "resume", "checkpoint.start", "data.root", "data.archive", "data.index_dir", "data.stage_to")
EVAL = (
    "checkpoint",
    "output",
    "predictions",
    *(f"sets.{name}" for name in ("imagenet", "labels", "real", "v2", "a", "r", "sketch")),
)
# Paths that a later start must find again.
ABSOLUTE = {"resume", "checkpoint.start", "data.root", "data.index_dir", "data.stage_to"}


@pytest.fixture
def home(here, monkeypatch):
    """The current folder, which is empty; the home folder is set to ``home`` in it."""
    monkeypatch.setenv("HOME", str(here / "home"))
    return here


def resolved(key: str, value: str) -> str:
    """The value of a path option after paths are resolved."""
    composed = OmegaConf.structured(EvalConfig if key in EVAL else TrainConfig)
    OmegaConf.update(composed, key, value)
    resolve_paths(composed)
    return OmegaConf.select(composed, key)


def test_every_path_is_known_as_one():
    """A new option that looks like a path must say whether it is one."""
    for kind, known in ((TrainConfig, TRAIN), (EvalConfig, EVAL)):
        found = {key for key, option in declared(kind).items() if option.rules.path}
        assert found == {*known} | {key for key in TRAIN if key.startswith("data.")}


@pytest.mark.parametrize("key", [*TRAIN, *EVAL])
def test_the_home_folder_and_relative_paths(key, home):
    assert resolved(key, "~/x.pt") == str(home / "home/x.pt")
    assert resolved(key, "~root/x.pt").startswith(os.path.expanduser("~root/"))
    assert resolved(key, "a/../~x.pt") == (str(home / "~x.pt") if key in ABSOLUTE else "a/../~x.pt")
    assert resolved(key, "$HOME/x.pt").endswith("$HOME/x.pt")


@pytest.mark.parametrize("key", ["output_dir", "data.root", "checkpoint.start", "checkpoint", "output", "sets.real"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "is empty: leave it out"),
        (" ", "is empty"),
        (
            "~nobody-of-that-name/x",
            r"there is no user nobody-of-that-name; type \./~nobody-of-that-name/x for a folder",
        ),
        ("/tmp/" + "x" * 300, "is too long"),
        ("/tmp/" + "ü" * 130, "is too long"),
        ("/tmp" + "/xxxxxxx" * 500, "is too long"),
    ],
    ids=["empty", "blank", "nobody", "name", "bytes", "path"],
)
def test_what_is_no_path_is_refused(key, value, message):
    with pytest.raises(UserError, match=rf"^{key}.*{message}"):
        resolved(key, value)


def test_a_relative_path_is_as_long_as_its_full_form(home):
    with pytest.raises(UserError, match="is too long"):
        resolved("output_dir", "/".join(["x" * 63] * 60))  # 3839 bytes


def test_words_of_resume_are_no_paths():
    assert resolved("resume", "auto") == "auto" and resolved("resume", "atuo") == "atuo"


def test_the_name_may_be_a_part_of_the_folder(home):
    composed = OmegaConf.structured(TrainConfig(name="a", output_dir="~/runs/${name}"))
    resolve_paths(composed)
    assert composed.output_dir == str(home / "home/runs/a")


@pytest.mark.parametrize(("value", "root"), [("", None), ("~/images", "home/images"), ("images", "images")])
def test_an_environment_variable(value, root, home, monkeypatch):
    """An empty variable counts as not set, and not as the current folder."""
    monkeypatch.setenv("IMAGENET_DIR", value)
    assert resolved("data.root", "${oc.env:IMAGENET_DIR,null}") == (root and str(home / root))
