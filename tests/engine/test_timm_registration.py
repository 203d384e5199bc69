"""For the weights of other authors, images are prepared as in timm's own validation."""

import copy
import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import timm
import torch
from omegaconf import DictConfig
from PIL import Image
from timm.data import create_transform, resolve_data_config

from data import DataConfig, EvalPlan, build_backend, open_split
from data.config import evaluation_side
from engine.errors import UserError
from engine.log import log_to
from engine.options.config import EvalConfig
from engine.options.settings import eval_settings
from engine.options.timm_registration import other_normalisation, registered_options
from models import registration
from tests.runs import composed


@pytest.fixture(scope="module")
def base() -> DictConfig:
    return composed("model=timm", "model.name=resnet18")


@pytest.fixture
def bare(base) -> Callable[..., EvalConfig]:
    """The settings of ``eval.py`` for bare weights of a timm model. Hydra composes only once, because that is slow."""

    def settings(name: str, *typed: str) -> EvalConfig:
        chosen = copy.deepcopy(base)
        chosen.merge_with_dotlist([f"model.name={name}", *(t.replace("data=", "data.name=") for t in typed)])
        return eval_settings(chosen, None, ["model=timm", f"model.name={name}", *typed])

    return settings


def test_every_model_of_timm_is_prepared_as_timm_does():
    """The same settings as in timm's validation, for all models and published weights, from the registration alone."""
    names = dict.fromkeys([*timm.list_models(), *timm.list_pretrained(), *timm.models.get_deprecated_models()])
    compared = 0
    for name in names:
        registered = registration(name)
        if registered is None:  # an old name of weights that no longer exist
            assert registered_options(name) == {}
            continue
        theirs = resolve_data_config(pretrained_cfg=registered.to_dict(), use_test_size=True)
        _, height, width = theirs.pop("input_size")
        if height != width:
            with pytest.raises(UserError, match=f"{height} × {width} pixels, but images here are square"):
                registered_options(name)
            continue
        ours = registered_options(name)
        expected = theirs | {"mean": list(theirs["mean"]), "std": list(theirs["std"]), "crop": height}
        assert ours == {"crop_ratio": expected.pop("crop_pct")} | expected, name
        compared += 1
    assert compared > 3000


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit_tiny_patch16_384", (384, 1.0, "center")),
        ("convnext_tiny", (288, 1.0, "center")),
        ("resnet50.a1_in1k", (288, 1.0, "center")),
        ("resnet50.tv_in1k", (224, 0.875, "center")),
        ("eva02_base_patch14_448.mim_in22k_ft_in22k_in1k", (448, 1.0, "squash")),
        ("dm_nfnet_f0", (256, 0.9, "squash")),
        ("vit_base_patch16_224_in21k", (224, 0.9, "center")),  # an old name
    ],
)
def test_the_size_is_that_of_the_registration(name, expected, bare):
    data = bare(name).data
    assert (data.crop, data.crop_ratio, data.crop_mode) == expected


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["data.crop=224"], (224, 235, "center")),  # its training size, with crop_ratio 0.95
        (["data.crop=320"], (320, 320, "center")),
        (["data.crop=320", "data.crop_ratio=0.8"], (320, 400, "center")),
        (["data.resize=300"], (288, 300, "center")),
        (["data.crop_mode=squash"], (288, 288, "squash")),
        (["data=folder"], (224, 256, "center")),
        (["benchmark=true"], (288, 329, "center")),
    ],
)
def test_what_is_typed_comes_first_and_the_rest_follows(typed, expected, bare):
    data = bare("convnext_tiny", *typed).data
    assert (data.crop, evaluation_side(data), data.crop_mode) == expected


@pytest.mark.parametrize(
    ("name", "typed", "said"),
    [
        (
            "volo_d5_512",
            (),
            "volo_d5_512 is registered with data.crop_ratio=1.15, which is not supported here: "
            "data.crop_ratio=1.0 is used instead",
        ),
        (
            "deepseek_vit_412m",
            (),
            "deepseek_vit_412m is registered with data.crop_mode=border, which is not supported here: "
            "data.crop_mode=center is used instead",
        ),
        (
            "vit_tiny_patch16_384",
            ("data=folder", "data.mean=[0,0,0]", "data.std=[1,1,1]"),
            "vit_tiny_patch16_384 is registered with data.crop=384, data.crop_ratio=1.0, but data=folder was chosen",
        ),
    ],
)
def test_what_is_not_taken_is_said(name, typed, said, capsys, bare):
    log_to(None, speaks=True)
    bare(name, *typed)
    assert capsys.readouterr().out.splitlines()[-1] == said


def test_an_interpolation_that_is_not_taken_is_said(monkeypatch, capsys, bare):
    log_to(None, speaks=True)
    registered = dataclasses.replace(registration("cswin_tiny"), interpolation="lanczos")
    monkeypatch.setattr("timm.get_pretrained_cfg", lambda name: registered)
    assert bare("cswin_tiny").data.interpolation == "bicubic"
    assert "registered with data.interpolation=lanczos, which is not supported here" in capsys.readouterr().out


def test_images_that_cannot_be_made_are_refused(bare):
    with pytest.raises(UserError, match=r"of 1024 × 768 pixels, but images here are square: add data.crop=768"):
        bare("vit_base_patch16_sapiens2")
    assert bare("vit_base_patch16_sapiens2", "data.crop=512").data.crop == 512


def test_images_of_other_channels_are_refused(monkeypatch, bare):
    registered = dataclasses.replace(registration("resnet18.tv_in1k"), input_size=(1, 224, 224))
    monkeypatch.setattr("timm.get_pretrained_cfg", lambda name: registered)
    with pytest.raises(UserError, match="resnet18 is registered for images of 1 channels"):
        bare("resnet18")


@pytest.mark.parametrize("name", ["convnext_tiny", "eva02_tiny_patch14_336", "dm_nfnet_f0"])
def test_pixels_are_those_of_timms_transform(name, photographs, bare):
    """The models use a centre crop, the whole image with its aspect ratio kept, and a squashed image."""
    data = bare(name, f"data.root={photographs}", "data.backend=torch").data
    images = open_split(data, "val")
    backend = build_backend("torch", images.source, data, torch.device("cpu"), 0, 8)
    (ours,) = backend.batches(iter([EvalPlan(images.index, data).crops(range(len(images)))]))
    config = resolve_data_config(pretrained_cfg=registration(name).to_dict(), use_test_size=True)
    transform = create_transform(**config, normalize=False)
    for row, image in enumerate(ours):
        with Image.open(images.source.path(row)) as file:
            theirs = transform(file.convert("RGB"))
        assert image.shape == theirs.shape
        assert np.abs(image.numpy().astype(int) - theirs.numpy().astype(int)).max() <= 2, images.source.path(row)


def test_a_training_is_told_of_the_pixels_that_weights_know():
    ours = DataConfig(name="any")
    said = other_normalisation("test_vit", ours)
    assert len(said) == 1 and "add data.mean=[0.5,0.5,0.5] data.std=[0.5,0.5,0.5] if" in said[0]
    assert other_normalisation("test_vit", dataclasses.replace(ours, mean=[0.5] * 3, std=[0.5] * 3)) == []
    assert (
        other_normalisation("resnet18", ours)
        == other_normalisation("deit_tiny", ours)
        == other_normalisation("no_model", ours)
        == []
    )
