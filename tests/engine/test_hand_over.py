"""A trained model in a folder that others load: timm, or torch alone; and its card."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch

import models  # noqa: F401  registers the architectures
from engine.hand_over import TrainedModel
from tests.devices import DEVICES, run_on
from tests.runs import PROJECT, SMALL, environment, metrics, run_here, train_here


@pytest.fixture(scope="module", params=DEVICES)
def run(request: pytest.FixtureRequest, small_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs with an average of its weights. It is handed over on the CPU, wherever it was trained."""
    folder = tmp_path_factory.mktemp("runs") / "a"
    options = (*SMALL, *run_on(request.param), "ema=0.9", "optim.lr=4e-3")
    train_here(*options, f"data.root={small_images}", "name=a", f"output_dir={folder}")
    return folder


@pytest.fixture(scope="module")
def folder(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("handed") / "over"
    TrainedModel(run).write(to)
    return to


def test_timm_loads_the_same_model(run: Path, folder: Path) -> None:
    ours, images = TrainedModel(run), torch.randn(3, 3, 28, 28)
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.equal(theirs(images), ours.model(images))
    raw = TrainedModel(run, weights="raw")
    assert (ours.weights, raw.weights) == ("ema", "raw")
    assert not torch.equal(raw.model(images), ours.model(images))


def test_timm_prepares_images_as_the_run_did(run: Path, folder: Path) -> None:
    data = timm.data.resolve_model_data_config(timm.create_model(f"local-dir:{folder}"))
    assert (data["input_size"], data["crop_pct"], data["interpolation"]) == ((3, 28, 28), 1.0, "bicubic")
    config = json.loads((folder / "config.json").read_text())
    assert config["label_names"] == TrainedModel(run).state["classes"]
    assert config["pretrained_cfg"]["license"] is config["pretrained_cfg"]["tag"] is None


def test_timm_resizes_images_to_the_same_side_whatever_the_ratio(run: Path, tmp_path: Path) -> None:
    """28 / (28 / 50) is a little less than 50, and timm rounds down."""
    ours = TrainedModel(run)
    ours.data = replace(ours.data, resize=50)
    ours.write(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]
    resize = timm.data.create_transform(config["input_size"], crop_pct=config["crop_pct"]).transforms[0]
    assert resize.size == 50


def test_everybody_may_read_all_files(folder: Path) -> None:
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


def test_the_card_says_how_it_was_trained_and_how_good_it_is(run: Path, folder: Path) -> None:
    card, last = (folder / "README.md").read_text(), metrics(run, "val")[-1]
    assert f"| {last['images']} | {last['top1']:.2f} % | {last['top5']:.2f} % |" in card
    for part in (
        "# lipsformer_swin_mini",
        "import models",
        "optim.lr: 0.004",
        "without learning-rate warm-up",
        "(EMA), after epoch 2 (",
    ):
        assert part in card
    assert "The run has not validated these weights." in TrainedModel(run, weights="raw").card()
    later = TrainedModel(run)
    later.state["step"] += 1
    assert "The run has not validated these weights." in later.card()
    tuned = TrainedModel(run)
    tuned.state["config"]["checkpoint"]["start"] = "/private/big.safetensors"
    assert "started from the weights in `big.safetensors`." in tuned.card() and "started from" not in card
    assert "license" not in card and "license: mit" in TrainedModel(run).card("mit")
    assert str(run) not in card and "root" not in card


@pytest.mark.slow
def test_a_model_of_timm_needs_none_of_our_code(
    small_images: Path, here: Path, set_threads: Callable[[int], None]
) -> None:
    set_threads(1)  # as the other process has, because rounding depends on the number of threads
    options = ("model=timm", "model.name=resnet10t", "recipe=plain", "data=folder", f"data.root={small_images}")
    small = ("data.crop=32", "data.resize=32", "max_steps=2", "epochs=2", "batch_size=32", "logger=none", "device=cpu")
    train_here(*options, *small, "max_workers=0", "data.backend=torch", "name=r")
    trained = TrainedModel(here / "outputs/r")
    trained.write(here / "to")
    assert "import models" not in (here / "to/README.md").read_text()
    images = torch.randn(2, 3, 32, 32)
    torch.save((images, trained.model(images)), here / "expected.pt")
    code = (
        "import timm, torch; images, expected = torch.load('expected.pt', weights_only=True); "
        "assert torch.equal(timm.create_model('local-dir:to', pretrained=True).eval()(images), expected)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=here, check=True, env=environment(PYTHONPATH=""))


@pytest.mark.slow
def test_the_command_writes_what_torch_alone_runs(run: Path, here: Path) -> None:
    out = run_here("scripts/export.py", str(run), "--to", "over", cwd=here)
    assert out.returncode == 0, out.stderr
    files = {"model.safetensors", "config.json", "README.md", "model.pt2", "model.onnx"}
    assert {path.name for path in Path("over").iterdir()} == files
    images = torch.randn(3, 3, 28, 28)
    torch.save((images, TrainedModel(run).model(images)), "expected.pt")
    code = (
        "import sys, torch; images, expected = torch.load('expected.pt', weights_only=True); "
        "assert torch.allclose(torch.export.load('over/model.pt2').module()(images), expected, atol=1e-4); "
        "assert not {'timm', 'models', 'engine'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=here, check=True, env=environment(PYTHONPATH=""))


def test_mistakes_get_one_line(run: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = run_here("scripts/export.py", "none", "--to", "over", cwd=here)
    assert out.returncode == 2 and "none has no checkpoints/last.pt: give the folder of a run" in out.stderr
    out = run_here("scripts/export.py", str(run), cwd=here)
    assert out.returncode == 2 and "where to? add --to DIR" in out.stderr
    out = run_here("scripts/export.py", "--model", "cswin_tiny", "--push-to-hub", "me/it", cwd=here)
    assert out.returncode == 2 and "--push-to-hub are for the folder of a run" in out.stderr
    shutil.copytree(run, here / "stripped")
    state = torch.load(here / "stripped/checkpoints/last.pt", weights_only=True)
    torch.save(state["model"], here / "stripped/checkpoints/last.pt")
    out = run_here("scripts/export.py", "stripped", "--to", "over", cwd=here)
    assert out.returncode == 2 and "holds only weights: export it with --model NAME" in out.stderr
    assert not (here / "over").exists()


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached_is_one_line(folder: Path) -> None:
    code = f"from engine.hand_over import push; from pathlib import Path; push(Path({str(folder)!r}), 'me/model')"
    address = {"HF_ENDPOINT": "http://127.0.0.1:1", "HF_TOKEN": "hf_secret"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, env=environment(**address), capture_output=True, text=True
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("engine.errors.UserError: the hub does not take me/model (")
    assert "hf_secret" not in done.stderr
