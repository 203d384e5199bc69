"""Exported models compute the same as the original: torch.export and ONNX, read back from their files."""

import math
import sys
from collections import namedtuple

import pytest
import timm
import torch

import models
from engine.checkpoints.checkpoint_file import FORMAT
from engine.errors import UserError
from scripts.export import TOLERANCE, difference, export, main, model_to_export
from tests.families import FORMS, SMALL, Small
from tests.runs import run_here

SWIN = {"embed_dim": 16, "depths": (1, 1), "num_heads": (2, 4), "window_size": 4}
CASES = FORMS | {
    "vit, sigma_reparam": SMALL["vit"].but(stabilizer="sigma_reparam"),
    "swin": Small("swin_tiny_patch4_window7_224", 32, SWIN),
}


@pytest.mark.slow
@pytest.mark.parametrize("form", CASES)
def test_every_family_exports(form, tmp_path):
    small = CASES[form]
    model = small.create(num_classes=5).eval()
    if not any(weight.any() for weight in model.get_classifier().parameters()):
        torch.nn.init.normal_(model.get_classifier().weight)  # a head of zeros would hide every difference
    found = export(model, small.side, tmp_path / "model")
    assert max(found.values()) < TOLERANCE
    assert {path.name for path in tmp_path.iterdir()} == {"model.pt2", "model.onnx"}


def test_differences_are_relative_to_the_largest_value():
    expected, nothing = torch.tensor([-4.0, 1.0]), torch.zeros(2)
    assert difference(torch.tensor([-4.0, 2.0]), expected) == 0.25
    assert difference(nothing, nothing) == 0
    assert difference(torch.tensor([0.0, 0.5]), nothing) == 0.5
    assert math.isnan(difference(torch.tensor([0.0, math.nan]), expected))


def test_a_checkpoint_brings_its_options(tmp_path):
    """Certified attention has the same weights as the released form, but computes something else."""
    small = SMALL["lipsformer_swin"].but(attention="certified", epsilon=0.1)
    model = small.create(num_classes=5).eval()
    options = {key: list(value) if isinstance(value, tuple) else value for key, value in small.options.items()}
    config = {"model": {"name": small.name} | options | {"img_size": None}, "data": {"crop": small.side}}
    state = {"format": FORMAT, "step": 1, "model": model.state_dict(), "ema": None, "config": config}
    torch.save(state | {"family": "lipsformer_swin", "classes": list("abcde")}, tmp_path / "last.pt")
    read, side = model_to_export(small.name, tmp_path / "last.pt", None, None)
    images = torch.randn(2, 3, small.side, small.side)
    assert side == small.side and torch.equal(read(images), model(images))
    with pytest.raises(
        models.ModelError, match=r"last.pt is a checkpoint of lipsformer_swin_tiny: set --model lipsformer_swin_tiny"
    ):
        model_to_export("cswin_tiny", tmp_path / "last.pt", None, None)
    with pytest.raises(models.ModelError, match=r"last.pt holds weights of another model: .*head"):
        model_to_export(small.name, tmp_path / "last.pt", 7, None)  # the number that was typed counts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "lipsformer_swim_tiny"], "there is no model 'lipsformer_swim_tiny': did you mean"),
        (["--model", "cswin_tiny", "--weights", "none.pt"], "there is no file none.pt"),
        (["--model", "cswin_tiny", "--img-size", "100"], "image size 100 does not fit"),
    ],
)
def test_mistakes_get_one_line(options, message, tmp_path):
    out = run_here("scripts/export.py", *options, cwd=tmp_path)
    assert out.returncode == 2 and message in out.stderr and len(out.stderr.splitlines()) == 1


@pytest.mark.parametrize("option", ["--num-classes", "--img-size"])
@pytest.mark.parametrize("value", ["0", "-1", "1.5", "x"])
def test_sizes_are_1_or_more(option, value, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["export.py", "--model", "lipsformer_swin_mini", f"{option}={value}"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert f"argument {option}: '{value}' is not a whole number of 1 or more" in capsys.readouterr().err


def test_a_checkpoint_that_does_not_tell_its_model_is_refused(tmp_path):
    torch.save({"format": FORMAT, "step": 1, "model": {}, "config": {}}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"w.pt lacks family, classes, model, data: save only its weights"):
        model_to_export("lipsformer_swin_mini", tmp_path / "w.pt", None, None)


@pytest.mark.parametrize(("options", "side"), [([], 28), (["--img-size", "56"], 56)])
def test_the_model_is_built_for_the_size_it_is_exported_for(options, side, tmp_path, monkeypatch):
    def without_files(model, side, path):
        assert model(torch.zeros(1, 3, side, side)).shape == (1, 7)
        sides.append(side)
        return {"ONNX": 0.0}

    sides: list[int] = []
    monkeypatch.setattr("scripts.export.export", without_files)
    command = ["export.py", "--model", "lipsformer_swin_mini", "--num-classes", "7", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*command, *options])
    assert main() == 0 and sides == [side]


def test_a_model_of_nan_is_not_served(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("scripts.export.export", lambda *_: {"torch.export": 0.0, "ONNX": math.nan})
    monkeypatch.setattr(sys, "argv", ["export.py", "--model", "lipsformer_swin_mini", "--out", str(tmp_path)])
    assert main() == 1
    assert "do not serve these files" in capsys.readouterr().err


def test_classes_and_size_are_the_models_own():
    """They belong to the weights that the name stands for, here with the 21,843 classes of ImageNet-21k."""
    model, side = model_to_export("vit_tiny_patch16_224.augreg_in21k", None, None, None)
    assert (model.num_classes, side) == (21843, 224)
    model, side = model_to_export("lipsformer_swin_mini", None, None, None)
    assert (model.num_classes, side) == (timm.get_pretrained_cfg("lipsformer_swin_mini").num_classes, 28)


def test_points_in_a_name_stay(tmp_path, monkeypatch):
    """``resnet50.a1_in1k`` and ``resnet50.tv_in1k`` are written to different files."""
    written = []
    monkeypatch.setattr("torch.export.save", lambda program, path: written.append(path.name) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(torch.nn.Flatten().eval(), 2, tmp_path / "net.a1_in1k")
    assert written == ["net.a1_in1k.pt2"]


def test_a_name_in_weights_of_others_cannot_command_the_terminal(tmp_path, monkeypatch, capsys):
    torch.save({"w\x1b[2J\nerror: b": torch.zeros(1)}, tmp_path / "w.pt")
    command = ["export.py", "--model", "lipsformer_swin_mini", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*command, "--weights", str(tmp_path / "w.pt")])
    assert main() == 2
    said = capsys.readouterr().err
    assert r"(w\x1b[2J\x0aerror: b)" in said and "\x1b" not in said and said.count("\n") == 1


def test_a_place_that_cannot_be_written_is_refused_first(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["export.py", "--model", "none", "--out", str(tmp_path / "file/x")])
    assert main() == 2
    assert "file/x cannot be written (Not a directory): choose another folder" in capsys.readouterr().err


def test_a_disk_that_is_too_full_is_refused_before_anything_is_written(tmp_path, monkeypatch, capsys):
    usage = namedtuple("usage", ("total", "used", "free"))
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(2, 0, 2_000_000))
    monkeypatch.setattr(sys, "argv", ["export.py", "--model", "lipsformer_swin_mini", "--out", str(tmp_path / "out")])
    assert main() == 2
    assert "MB, but the disk of" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []
