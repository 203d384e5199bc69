"""Checkpoints that were stripped for publication are read, or refused with a message that says what is missing."""

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.checkpoints.checkpoint_file import resumable
from engine.checkpoints.saved_model import open_trained, trained_model
from engine.errors import UserError
from engine.options.plain import as_container
from engine.options.settings import eval_settings
from models import build_model, family_of
from tests.runs import composed, same_tensors, settings


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    """The parts of a checkpoint that an evaluation reads."""
    config = settings("model=lipsformer_swin_mini", "data.crop=28")
    return {
        **{"format": 1, "step": 1, "config": as_container(config), "family": family_of(config.model)},
        **{"classes": list("abcdefghij"), "ema": None, "model": build_model(config.model, 10, 28).state_dict()},
    }


def read(path: Path, content: dict[str, Any] | None, *typed: str) -> dict[str, torch.Tensor]:
    """The weights of the model that an evaluation builds."""
    options = [f"checkpoint={path}", *typed]
    return trained_model(eval_settings(composed(*options), content, options), content, 10).state_dict()


@pytest.mark.parametrize(
    ("changes", "lacks"),
    [
        ({"family": None}, "family"),
        ({"classes": None}, "classes"),
        ({"config": {}}, "model, data"),
        ({"config": {"model": [1], "data": "x", "augment": 5, "logger": None}}, "model, data"),
    ],
)
def test_a_checkpoint_that_does_not_tell_its_model_is_read_as_weights(whole, changes, lacks, tmp_path):
    path = tmp_path / "w.pt"
    torch.save({key: value for key, value in (whole | changes).items() if value is not None}, path)
    with pytest.raises(UserError, match=rf"w.pt lacks {lacks}: add model=NAME to read only its weights"):
        open_trained(str(path))
    assert open_trained(str(path), has_model=True) is None
    if lacks == "family":
        assert same_tensors(read(path, None, "model=lipsformer_swin_mini", "data.crop=28"), whole["model"])


def test_a_model_of_an_unknown_family_is_refused_in_one_line(whole, tmp_path):
    path = tmp_path / "w.pt"
    torch.save(whole | {"family": "newer"}, path)
    with pytest.raises(UserError, match=r"w.pt has a model of the family newer, which this version does not know: use"):
        open_trained(str(path))
    assert open_trained(str(path), has_model=True) is None


def test_a_checkpoint_of_another_version_is_refused_in_one_line_or_read_under_todays_names(whole, tmp_path):
    path = tmp_path / "w.pt"
    for version in (0, 2):
        torch.save(whole | {"format": version}, path)
        with pytest.raises(UserError, match=rf"w.pt has format {version}, but this version reads 1"):
            open_trained(str(path))
    torch.save(whole | {"config": whole["config"] | {"augment": {"auto": "3a"}}}, path)
    read = open_trained(str(path))
    assert read is not None and read["config"]["augment"] == {"auto_augment": "3a"}
    assert read["callbacks"] == {}, "it had no logger"


def test_a_checkpoint_needs_no_average(whole, tmp_path):
    path = tmp_path / "w.pt"
    config = {key: value for key, value in whole["config"].items() if key in ("model", "data")}
    torch.save({key: value for key, value in (whole | {"config": config}).items() if key != "ema"}, path)
    assert same_tensors(read(path, open_trained(str(path))), whole["model"])


@pytest.mark.parametrize("taken", ["ema", "raw"])
def test_an_evaluation_says_that_it_takes_the_average_from_a_file_of_others(whole, taken, tmp_path, caplog):
    """DeiT and timm save both, and their own scripts evaluate the trained weights."""
    path, average = tmp_path / "w.pth", {name: value + 1 for name, value in whole["model"].items()}
    torch.save({"state_dict": whole["model"], "state_dict_ema": average}, path)
    with caplog.at_level("INFO"):
        found = read(path, None, "model=lipsformer_swin_mini", "data.crop=28", f"eval.weights={taken}")
    assert same_tensors(found, average if taken == "ema" else whole["model"])
    said = f"evaluating the moving average in {path}: eval.weights=raw takes the trained weights"
    assert (said in caplog.messages) == (taken == "ema")


def test_a_run_does_not_continue_from_weights_alone(whole, tmp_path):
    path = tmp_path / "w.pt"
    complete = whole | {"stepper": {}, "validated": 0, "fingerprint": ""}
    assert resumable(complete, path)["step"] == 1
    for part in ("stepper", "validated", "fingerprint", "ema"):
        stripped = {name: value for name, value in complete.items() if name != part}
        with pytest.raises(UserError, match=rf"no run can continue from {path}, .*: set checkpoint={path} instead"):
            resumable(stripped, path)
