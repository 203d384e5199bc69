"""Crop, share of the image and normalisation: those of the checkpoint or of the registered model, unless typed."""

import dataclasses

import pytest
import timm
import torch

from data.config import evaluation_side
from engine.checkpoints.saved_model import trained_model
from engine.log import log_to
from engine.options.config import EvalConfig
from engine.options.plain import as_container
from engine.options.settings import eval_settings
from models import ModelError, build_model, family_of
from tests.runs import composed, settings


def saved(crop: int = 224, model: str = "deit_tiny", **data) -> dict:
    """The parts of a checkpoint that decide how it is evaluated."""
    config = settings(f"model={model}", f"data.crop={crop}", *(f"data.{key}={value}" for key, value in data.items()))
    return {"config": as_container(config), "family": family_of(config.model)}


@pytest.mark.parametrize(
    ("trained_with", "typed", "expected"),
    [
        ({}, ["data.crop=288"], (288, 0.875, 329)),
        ({}, ["++data.crop=320"], (320, 0.875, 365)),
        ({}, ["data.crop=288", "data.crop_ratio=1.0"], (288, 1.0, 288)),
        ({}, ["data.crop_ratio=0.95"], (224, 0.95, 235)),
        ({"resize": 256}, ["data.crop=448"], (448, 0.875, 512)),
        ({"resize": 256}, ["data.crop=288", "data.crop_ratio=1.0"], (288, 1.0, 288)),
        ({"resize": 256}, ["data.crop=288", "data.resize=300"], (288, 0.875, 300)),
        ({"resize": 256}, [], (224, 0.875, 256)),
        ({"resize": 256}, ["data.resize=248"], (224, 0.875, 248)),
    ],
)
def test_crop_and_share_beside_a_checkpoint(trained_with, typed, expected):
    content = saved(**trained_with)
    content["config"]["model"]["img_size"] = 224 if "data.crop=288" in typed else None
    found = eval_settings(composed("checkpoint=a.pt", *typed), content, ["checkpoint=a.pt", *typed])
    assert (found.data.crop, found.data.crop_ratio, evaluation_side(found.data)) == expected


@pytest.mark.parametrize(("name", "root"), [("folder", "/trained/on"), ("imagenet", "/this/machine")])
def test_imagenet_of_this_machine_stands_for_that_of_the_training_alone(name, root, monkeypatch):
    monkeypatch.setenv("IMAGENET_DIR", "/this/machine")
    content = saved(root="/trained/on")
    content["config"]["data"]["name"] = name
    assert eval_settings(composed("checkpoint=a.pt"), content, ["checkpoint=a.pt"]).data.root == root


def test_precision_and_memory_layout_are_those_of_the_training_unless_typed():
    content = saved()
    content["config"] |= {"amp": "fp16", "channels_last": True}
    for typed, expected in ((["amp=fp32"], ("fp32", True)), (["channels_last=false"], ("fp16", False))):
        found = eval_settings(composed("checkpoint=a.pt", *typed), content, ["checkpoint=a.pt", *typed])
        assert (found.amp, found.channels_last) == expected


def test_the_backend_and_the_index_of_the_training_s_machine_are_not_taken():
    content = saved(backend="dali", index_dir="/trained/index", interpolation="bilinear")
    data = eval_settings(composed("checkpoint=a.pt"), content, ["checkpoint=a.pt"]).data
    assert (data.backend, data.index_dir, data.interpolation) == ("auto", None, "bilinear")


@pytest.mark.parametrize(
    ("model", "crop", "said"),
    [
        ("deit_tiny", 64, "pos_embed was resized from 197 to 17 tokens"),
        ("swin_tiny", 192, "2 relative position bias tables were resized to the model's windows"),
    ],
)
def test_a_model_is_built_for_the_crop(model, crop, said, tmp_path, capsys):
    """Weights for 224 pixels are loaded into a model for another size, and its answers are finite."""
    log_to(None, speaks=True)
    content = saved(model=model)
    typed = ["checkpoint=a.pt", f"data.crop={crop}"]
    config = content["config"]["model"]
    built = build_model(eval_settings(composed("checkpoint=a.pt"), content, typed[:1]).model, 10, 224)
    content |= {"model": built.state_dict(), "ema": None}
    model = trained_model(eval_settings(composed(*typed), content, typed), content, 10).eval()
    assert model(torch.randn(1, 3, crop, crop)).isfinite().all() and config["img_size"] is None
    assert capsys.readouterr().out.splitlines() == [said]


@pytest.mark.parametrize("model", ["lipsformer_swin_tiny", "cswin_tiny"])
def test_a_crop_the_model_cannot_take_is_refused_with_one_that_it_can(model):
    content, typed = saved(model=model), ["checkpoint=a.pt", "data.crop=288"]
    with pytest.raises(ModelError, match=r"multiples? of 224"):
        trained_model(eval_settings(composed(*typed), content, typed), content, 10)


def bare(*overrides: str) -> EvalConfig:
    """The settings of ``eval.py`` for bare weights."""
    return eval_settings(composed(*overrides), None, overrides)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model=cswin_tiny"], (0.9, 0.485, 0.229, "bicubic")),
        (["model=timm", "model.name=tf_efficientnet_lite0"], (0.875, 0.5, 0.5, "bicubic")),
        (["model=timm", "model.name=resnet50.tv_in1k"], (0.875, 0.485, 0.229, "bilinear")),
        (["model=timm", "model.name=volo_d5_512"], (1.0, 0.485, 0.229, "bicubic")),
        (["model=timm", "model.name=resnet50", "data.crop_ratio=0.8"], (0.8, 0.485, 0.229, "bicubic")),
        (["model=timm", "model.name=tf_efficientnet_lite0", "data.std=[1,1,1]"], (0.875, 0.5, 1, "bicubic")),
        (["model=cswin_tiny", "data.resize=256"], (0.875, 0.485, 0.229, "bicubic")),
        (["model=cswin_tiny", "data=folder"], (0.875, 0.485, 0.229, "bicubic")),
    ],
)
def test_bare_weights_see_images_as_their_model_is_registered(overrides, expected):
    data = bare(*overrides).data
    assert (data.crop_ratio, data.mean[0], data.std[0], data.interpolation) == expected


def test_an_interpolation_there_is_not_is_not_taken(monkeypatch):
    registered = dataclasses.replace(timm.get_pretrained_cfg("cswin_tiny"), interpolation="lanczos")
    monkeypatch.setattr("timm.get_pretrained_cfg", lambda name: registered)
    data = bare("model=cswin_tiny").data
    assert (data.crop_ratio, data.interpolation) == (0.9, "bicubic")


def test_what_is_taken_from_the_registration_is_said(capsys):
    log_to(None, speaks=True)
    bare("model=cswin_tiny", "data.interpolation=bilinear", "data.mean=[0,0,0]")
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith(
        "as cswin_tiny is registered: data.crop=224, data.std=[0.229, 0.224, 0.225], data.crop_ratio=0.9, "
        "data.crop_mode=center"
    )
