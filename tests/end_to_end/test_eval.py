"""Evaluation is exact, needs only its split, and can differ from the training in its options."""

import json
import os
import shutil
from pathlib import Path

import pytest
import timm
import timm.data
import torch
from PIL import Image

from data import DeviceAugment
from data.loader import Batch
from engine.evaluation.scoring import score
from engine.processes.distributed import World
from engine.runtime import Runtime
from tests.devices import run_on
from tests.runs import SMALL, checkpoint, run, run_here, scores, train_here


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


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["torch", "dali"])
def test_a_gpu_gives_the_scores_of_the_cpu(backend, trained, tmp_path):
    found = []
    for device in ("cpu", "cuda"):
        arguments = (f"checkpoint={trained}/checkpoints/last.pt", f"data.backend={backend}", "max_workers=0")
        out = run_here("eval.py", *arguments, *run_on(device), cwd=tmp_path)
        assert out.returncode == 0, out.stderr
        found.append(scores(tmp_path))
    assert found[0]["images"] == found[1]["images"] == 80
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], rel=0.02)


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
