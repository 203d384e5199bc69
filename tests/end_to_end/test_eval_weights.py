"""Weights that no run of ours saved are evaluated: the authors', bare ones and timm's."""

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

from models.weights.loading import named_for
from tests.authors import released, save, yacs_config
from tests.runs import run_here, scores


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
