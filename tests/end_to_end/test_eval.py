"""Evaluation is exact, needs only its split, and takes weights from many kinds of files."""

import dataclasses
import json
import math
import os
import re
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import timm
import timm.data
import torch
from PIL import Image

from data import DeviceAugment
from data.config import evaluation_side
from data.loader import Batch
from engine.config import EvalConfig
from engine.distributed import World
from engine.log import log_to
from engine.runtime import Runtime
from engine.saved_model import trained_model
from engine.scoring import score
from engine.settings import as_container, eval_settings
from models import ModelError, build_model, family_of
from models.weights import named_for
from tests.authors import released, save, yacs_config
from tests.runs import SMALL, checkpoint, composed, run, run_here, settings, train_here


@pytest.fixture(scope="module")
def trained(small_images, tmp_path_factory) -> Path:
    """A short run with a moving average of its weights."""
    here, back = tmp_path_factory.mktemp("trained"), os.getcwd()
    os.chdir(here)
    try:
        train_here(*SMALL, f"data.root={small_images}", "name=a", "ema=0.5")
    finally:
        os.chdir(back)
    return here / "outputs/a"


def scores(here: Path) -> dict:
    return json.loads((here / "eval.json").read_text())


@pytest.mark.slow
def test_every_image_counts_once_whatever_the_batch_and_world(trained, tmp_path):
    found = []
    for processes, batch in ((1, 80), (2, 7), (3, 33)):
        arguments = (f"checkpoint={trained}/checkpoints/last.pt", f"eval.batch_size={batch}", "max_workers=0")
        out = run("eval.py", *arguments, "device=cpu", cwd=tmp_path, processes=processes)
        assert out.returncode == 0, out.stderr
        found.append(scores(tmp_path))
    assert {f["images"] for f in found} == {80}
    assert len({(f["top1"], f["top5"]) for f in found}) == 1
    assert max(f["loss"] for f in found) - min(f["loss"] for f in found) < 1e-5


def test_scores_are_right():
    """The scores equal those counted by hand, with fewer than five classes and batches of different sizes."""
    logits = torch.randn(23, 3)
    labels = torch.randint(3, (23,))
    model = torch.nn.Identity()
    augment = DeviceAugment([0.0] * 3, [1 / 255] * 3, 3)

    class Table(torch.nn.Module):
        """Returns the logits of an image; the first pixel is the image's number."""

        def forward(self, x):
            return logits[x[:, 0, 0, 0].round().long()]

    model = Table()
    images = torch.zeros(23, 3, 2, 2, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(23)
    batches = [Batch(images[a:b], labels[a:b], None, None) for a, b in ((0, 10), (10, 11), (11, 23))]
    found = score(model, batches, augment, Runtime(World(0, 1, 0, 1), torch.device("cpu")))
    assert found.images == 23
    assert found.top1 == pytest.approx(100 * (logits.argmax(1) == labels).float().mean().item())
    assert found.top5 == 100
    assert found.loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)


def test_raw_and_averaged_weights(trained, tmp_path):
    state = checkpoint(trained)
    assert any(not torch.equal(v, state["ema"][k]) for k, v in state["model"].items())
    losses = {}
    for kind in ("ema", "raw"):
        out = run_here("eval.py", f"checkpoint={trained}/checkpoints/last.pt", f"eval.weights={kind}", cwd=tmp_path)
        assert out.returncode == 0, out.stderr
        losses[kind] = scores(tmp_path)["loss"]
    last = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()][-1]
    assert losses["ema"] == pytest.approx(last["loss"], abs=1e-6) and losses["ema"] != losses["raw"]


def test_only_the_split_is_needed_and_the_folder_may_have_moved(trained, small_images, tmp_path):
    shutil.copytree(small_images / "val", tmp_path / "elsewhere" / "val")
    out = run_here("eval.py", f"checkpoint={trained}/checkpoints/best.pt", "data.root=elsewhere", cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    assert scores(tmp_path)["images"] == 80


def test_a_part_of_the_classes_keeps_its_labels(trained, small_images, tmp_path):
    """Labels come from the class names, not from the order of the three or seven classes in the folder."""
    whole = run_here("eval.py", f"checkpoint={trained}/checkpoints/last.pt", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    correct = round(scores(tmp_path)["top1"] * 80 / 100)
    parts = 0
    folders = sorted((small_images / "val").iterdir())
    for i, group in enumerate((folders[:3], folders[3:])):
        for folder in group:
            shutil.copytree(folder, tmp_path / f"part{i}" / "val" / folder.name)
        out = run_here("eval.py", f"checkpoint={trained}/checkpoints/last.pt", f"data.root=part{i}", cwd=tmp_path)
        assert out.returncode == 0, out.stderr
        parts += round(scores(tmp_path)["top1"] * scores(tmp_path)["images"] / 100)
    assert parts == correct


@pytest.mark.slow
def test_the_authors_file_is_evaluated(small_images, tmp_path):
    """A file with the authors' names and settings scores the same as the same weights under our names."""
    for folder in (small_images / "val").iterdir():
        (tmp_path / "images/val" / folder.name).mkdir(parents=True)
        shutil.copy(sorted(folder.iterdir())[0], tmp_path / "images/val" / folder.name)
    theirs, model = released("lipsformer_swin_tiny"), timm.create_model("lipsformer_swin_tiny", num_classes=10)
    weights = model.state_dict()
    for name in (name for name in weights if name.endswith("scale") or name == "head.weight"):
        weights[name].normal_(std=1.0 if name == "head.weight" else 0.3)  # else a new model would score the same
    places = {id(value): name for name, value in theirs.items()}
    renamed = {places[id(value)]: weights[name] for name, value in named_for(model, theirs).items()}
    tables = {name: torch.zeros(49, 49, dtype=torch.long) for name in theirs.keys() - renamed.keys()}
    save({"model": renamed | tables, "config": yacs_config(LR=1e-3)}, tmp_path / "theirs.pth")
    safetensors.torch.save_file(weights, tmp_path / "ours.safetensors")
    losses = []
    for file in ("theirs.pth", "ours.safetensors"):
        options = ("model=lipsformer_swin_tiny", "data=folder", "data.root=images", "max_workers=0", "device=cpu")
        out = run_here("eval.py", f"checkpoint={file}", *options, "amp=fp32", cwd=tmp_path)
        assert out.returncode == 0, out.stderr
        losses.append(scores(tmp_path)["loss"])
    assert losses[0] == losses[1] and abs(losses[0] - math.log(10)) > 0.1


def test_bare_weights_with_a_model(small_images, tmp_path):
    model = timm.create_model("resnet18", num_classes=10)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "w.safetensors")
    options = ("model=timm", "model.name=resnet18", "data=folder", f"data.root={small_images}", "data.crop=28")
    out = run_here("eval.py", "checkpoint=w.safetensors", *options, "data.resize=28", "amp=fp32", cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    assert scores(tmp_path)["images"] == 80
    other = run_here("eval.py", "checkpoint=w.safetensors", *options, "model.name=resnet34", cwd=tmp_path)
    assert other.returncode == 2
    assert re.search(r"error: w.safetensors holds weights of another model: \d+ missing \(layer1.2", other.stderr)


def test_another_crop_and_share_of_the_image(trained, small_images, tmp_path):
    """Trained at 28 pixels and evaluated at 56, on the whole image; PIL prepares the images for comparison."""
    options = (f"checkpoint={trained}/checkpoints/last.pt", "device=cpu", "max_workers=0", "amp=fp32")
    out = run_here("eval.py", *options, "data.crop=56", "data.crop_ratio=1.0", cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    found = scores(tmp_path)
    state = checkpoint(trained)
    config = state["config"]["model"]
    names = ("embed_dim", "depths", "num_heads", "patch_size", "window_size", "mlp_ratio")
    model = timm.create_model(config["name"], num_classes=10, img_size=56, **{name: config[name] for name in names})
    model.load_state_dict(state["ema"])
    transform = timm.data.create_transform(
        *(56,),
        interpolation="bicubic",
        crop_pct=1.0,
        mean=state["config"]["data"]["mean"],
        std=state["config"]["data"]["std"],
    )
    files = [
        (f, label) for label, c in enumerate(state["classes"]) for f in sorted((small_images / "val" / c).iterdir())
    ]
    images = torch.stack([transform(Image.open(file).convert("RGB")) for file, _ in files])
    with torch.inference_mode():
        loss = torch.nn.functional.cross_entropy(model.eval()(images), torch.tensor([label for _, label in files]))
    assert found["loss"] == pytest.approx(loss.item(), abs=0.01) and found["images"] == 80


def saved(crop: int = 224, model: str = "deit_tiny", **data) -> dict:
    """The parts of a checkpoint that decide how it is evaluated."""
    config = settings(f"model={model}", f"data.crop={crop}", *(f"data.{key}={value}" for key, value in data.items()))
    return {"config": as_container(config), "family": family_of(config.model)}


@pytest.mark.parametrize(
    ("trained_with", "typed", "expected"),
    [
        ({}, ["data.crop=288"], (288, 0.875, 329)),
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


def test_single_options_of_the_model_count_beside_a_checkpoint(trained, tmp_path):
    """Certified attention has the same weights as the released form, but computes something else."""
    losses = []
    for options in (), ("model.attention=certified", "model.epsilon=1"):
        out = run_here("eval.py", f"checkpoint={trained}/checkpoints/last.pt", *options, "max_workers=0", cwd=tmp_path)
        assert out.returncode == 0, out.stderr
        losses.append(scores(tmp_path)["loss"])
    assert losses[0] != losses[1]
    for options, message in (
        ("model.attentoin=certified", "no option 'model.attentoin': did you mean model.attention"),
        ("model.epsilon=small", "model.epsilon: 'small' is not a number"),
    ):
        out = run_here("eval.py", f"checkpoint={trained}/checkpoints/last.pt", options, cwd=tmp_path)
        assert out.returncode == 2 and message in out.stderr and out.stderr.count("\n") == 1, out.stderr


@pytest.mark.skipif("TEST_IMAGES" not in os.environ, reason="TEST_IMAGES names no folder of ImageNet photographs")
@pytest.mark.skipif("TEST_WEIGHTS" not in os.environ, reason="TEST_WEIGHTS names no weights of tf_efficientnet_lite0")
def test_a_pretrained_network_scores_as_through_timms_transform(tmp_path):
    """Within half a point for both backends. Needs ``val/<wnid>/`` in ``TEST_IMAGES``, weights in ``TEST_WEIGHTS``."""
    images, weights = Path(os.environ["TEST_IMAGES"]), os.environ["TEST_WEIGHTS"]
    mean, std = 127 / 255, 128 / 255
    model = timm.create_model("tf_efficientnet_lite0").eval()
    model.load_state_dict(safetensors.torch.load_file(weights))
    transform = timm.data.create_transform(224, interpolation="bicubic", mean=[mean] * 3, std=[std] * 3, crop_pct=0.875)
    names = timm.data.ImageNetInfo().label_names()
    files = sorted(file for file in (images / "val").glob("*/*") if file.is_file())
    top1 = top5 = 0
    with torch.inference_mode():
        for file in files:
            best = model(transform(Image.open(file).convert("RGB"))[None]).topk(5).indices[0].tolist()
            label = names.index(file.parent.name)
            top1, top5 = top1 + (label == best[0]), top5 + (label in best)
    by_timm = {"top1": 100 * top1 / len(files), "top5": 100 * top5 / len(files)}
    print(f"timm {by_timm}")
    assert by_timm["top1"] > 87
    options = ("model=timm", "model.name=tf_efficientnet_lite0", f"checkpoint={weights}", "amp=fp32")
    pixels = (f"data.mean=[{mean},{mean},{mean}]", f"data.std=[{std},{std},{std}]", f"data.root={images}")
    for backend in ("dali", "torch"):
        out = run_here(
            "eval.py", *options, *pixels, f"data.index_dir={tmp_path}", f"data.backend={backend}", cwd=tmp_path
        )
        assert out.returncode == 0, out.stderr
        found = scores(tmp_path)
        print(backend, found)
        assert found["images"] == len(files)
        assert abs(found["top1"] - by_timm["top1"]) <= 0.5 and abs(found["top5"] - by_timm["top5"]) <= 0.5
