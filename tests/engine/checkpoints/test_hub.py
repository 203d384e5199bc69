"""A trained model in a folder that others load: timm, or torch alone; and its card."""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file

import models  # noqa: F401  registers the architectures
from engine.checkpoints.hub import TrainedModel, push
from engine.errors import UserError
from models import ModelError
from scripts.export import hand_over, parse
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


def test_a_model_whose_layers_share_weights_is_handed_over(small_images: Path, tmp_path: Path) -> None:
    """timm's CoaT shares its convolutions for positions between all blocks of a stage."""
    train_here(
        *("model=timm", "model.name=coat_lite_tiny", "recipe=plain", "data=folder", f"data.root={small_images}"),
        *("data.crop=32", "data.resize=32", "data.backend=torch", "max_workers=0", "device=cpu", "amp=fp32", "ema=0.9"),
        *("batch_size=8", "max_steps=1", "logger=none", f"output_dir={tmp_path}/a"),
    )
    ours, images = TrainedModel(tmp_path / "a"), torch.randn(2, 3, 32, 32)
    ours.write(tmp_path / "to")
    theirs = timm.create_model(f"local-dir:{tmp_path}/to", pretrained=True).eval()
    assert torch.equal(theirs(images), ours.model(images))


def with_another_checkpoint(run: Path, to: Path, **changes: Any) -> None:
    """A copy of a run whose checkpoint holds something else."""
    state = torch.load(run / "checkpoints/last.pt", weights_only=True)
    (to / "checkpoints").mkdir()
    torch.save(state | changes, to / "checkpoints/last.pt")
    shutil.copy(run / "metrics.jsonl", to)


def test_options_of_images_that_another_version_had_are_left_out(run: Path, tmp_path: Path) -> None:
    config = TrainedModel(run).state["config"]
    with_another_checkpoint(run, tmp_path, config=config | {"data": config["data"] | {"of_old": 1, "crop_ratio": 0.5}})
    assert TrainedModel(tmp_path).data.crop_ratio == 0.5


def test_a_run_without_an_average_hands_over_the_weights_of_its_last_step(run: Path, tmp_path: Path) -> None:
    with_another_checkpoint(run, tmp_path, ema=None)
    plain, images = TrainedModel(tmp_path), torch.randn(3, 3, 28, 28)
    assert torch.equal(plain.model(images), TrainedModel(run, weights="raw").model(images))
    assert plain.weights == "raw" and "holds the weights of the last step" in plain.card()
    assert "| validation images |" in plain.card()  # the validation scored these weights


def test_timm_prepares_images_as_the_run_did(run: Path, folder: Path) -> None:
    data = timm.data.resolve_model_data_config(timm.create_model(f"local-dir:{folder}"))
    assert (data["input_size"], data["crop_pct"], data["interpolation"]) == ((3, 28, 28), 1.0, "bicubic")
    config = json.loads((folder / "config.json").read_text())
    assert config["label_names"] == TrainedModel(run).state["classes"]
    assert config["pretrained_cfg"]["license"] is config["pretrained_cfg"]["tag"] is None


@pytest.mark.parametrize(("interpolation", "theirs"), [("random", "bicubic"), ("bilinear", "bilinear")])
def test_timm_prepares_images_as_the_run_did_whatever_its_options(
    run: Path, tmp_path: Path, interpolation: str, theirs: str
) -> None:
    """Also the side, although 28 / (28 / 50) is a little less than 50, and timm rounds down."""
    ours, mean, std = TrainedModel(run), [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    ours.data = replace(ours.data, resize=50, crop_mode="squash", interpolation=interpolation, mean=mean, std=std)
    ours.write(tmp_path)
    data = timm.data.resolve_model_data_config(timm.create_model(f"local-dir:{tmp_path}"))
    assert (data["mean"], data["std"]) == (mean, std)
    assert (data["crop_mode"], data["interpolation"]) == ("squash", theirs)
    assert timm.data.create_transform(data["input_size"], crop_pct=data["crop_pct"]).transforms[0].size == 50


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
    assert "license" not in card
    assert str(run) not in card and "root" not in card


@pytest.mark.parametrize(
    ("group", "value"), [("optim", None), ("augment", 5), ("eval", {}), ("checkpoint", "x"), ("data", {"name": [1]})]
)
def test_a_card_that_cannot_be_written_is_one_line_and_leaves_no_files(
    run: Path, tmp_path: Path, group: str, value: Any
) -> None:
    theirs = TrainedModel(run)
    theirs.state["config"][group] = value
    with pytest.raises(UserError, match=r"^the checkpoint in .* lacks settings that the card shows \(.*\): export its"):
        theirs.write(tmp_path)
    assert not list(tmp_path.iterdir())


def test_options_that_this_version_does_not_take_are_one_line(run: Path, tmp_path: Path) -> None:
    config = TrainedModel(run).state["config"]
    for other, said in (({"newer": 1}, "Key 'newer' not in"), ({"drop_path_rate": "x"}, "Value 'x' of type 'str'")):
        (tmp_path / said).mkdir()
        with_another_checkpoint(run, tmp_path / said, config=config | {"model": config["model"] | other})
        with pytest.raises(ModelError, match=rf"options that this version does not take \({said}.*\): use the version"):
            TrainedModel(tmp_path / said)


def test_text_from_the_checkpoint_of_another_stays_text(run: Path) -> None:
    """Markdown shows what is between backticks as it is, as long as it holds no backtick and no line break."""
    theirs, evil = TrainedModel(run), "x`<script>\n```\n# heading"
    config = theirs.state["config"]
    config["data"]["name"], config["recipe"] = evil, evil
    config["checkpoint"]["start"] = f"/some/{evil}"
    config["optim"][f"{evil} key"] = [evil]
    lines = theirs.card().splitlines()
    assert [line for line in lines if line.startswith("```")] == ["```python", "```", "```yaml", "```"]
    assert [line for line in lines if line.startswith("#")][1:] == ["## Accuracy", "## Load it", "## Recipe"]
    assert sum("on `x'<script> ''' # heading`." in line for line in lines) == 1
    assert sum("weights in `x'<script> ''' # heading`." in line for line in lines) == 1


def test_the_licence_is_in_the_card_and_in_what_timm_reads(run: Path, tmp_path: Path) -> None:
    TrainedModel(run).write(tmp_path, "mit")
    assert "\nlicense: mit\n" in (tmp_path / "README.md").read_text()
    assert timm.create_model(f"local-dir:{tmp_path}").pretrained_cfg["license"] == "mit"


def test_the_hub_gets_only_the_files_of_the_model(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new repository is public, and the folder may hold anything else."""
    sent: dict[str, set[str]] = {}

    class Hub:
        def create_repo(self, repository: str, exist_ok: bool) -> None:
            assert exist_ok

        def upload_folder(
            self, repo_id: str, folder_path: Path, commit_message: str, allow_patterns: list[str] | None = None
        ) -> str:
            names = [str(path.relative_to(folder_path)) for path in folder_path.rglob("*") if path.is_file()]
            sent[repo_id] = set(filter_repo_objects(names, allow_patterns=allow_patterns))
            return "address"

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    shutil.copytree(folder, tmp_path / "over")
    (tmp_path / "over/checkpoints").mkdir()
    for name in ("checkpoints/last.pt", "train.log", "model.pt2", "model.onnx"):
        (tmp_path / "over" / name).touch()
    assert push(tmp_path / "over", "me/model") == "address"
    assert sent == {"me/model": {"README.md", "config.json", "model.safetensors", "model.pt2", "model.onnx"}}


@pytest.mark.parametrize("take", ["ema", "raw"])
def test_the_command_hands_over_the_weights_it_was_asked_for(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, take: str
) -> None:
    command = ["export.py", str(run), "--to", str(tmp_path), "--take", take, "--license", "mit"]
    monkeypatch.setattr(sys, "argv", command)
    model, side, path = hand_over(parse())
    images = torch.randn(3, 3, 28, 28)
    expected = TrainedModel(run, weights=take).model(images)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert (side, path, theirs.pretrained_cfg["license"]) == (28, tmp_path / "model", "mit")
    assert torch.equal(model(images), expected) and torch.equal(theirs(images), expected)


@pytest.mark.parametrize("factor", [1.01, math.nan])
def test_a_folder_from_which_timm_builds_another_model_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    write = TrainedModel.write

    def damaged(self: TrainedModel, to: Path, license: str | None = None) -> None:
        write(self, to, license)
        weights = {name: value * factor for name, value in load_file(to / "model.safetensors").items()}
        save_file(weights, to / "model.safetensors")

    monkeypatch.setattr(TrainedModel, "write", damaged)
    monkeypatch.setattr(sys, "argv", ["export.py", str(run), "--to", str(tmp_path)])
    with pytest.raises(UserError, match=r"timm builds another model from .*: its largest logit differs by"):
        hand_over(parse())


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
    code = f"from engine.checkpoints.hub import push; from pathlib import Path; push(Path({str(folder)!r}), 'me/model')"
    address = {"HF_ENDPOINT": "http://127.0.0.1:1", "HF_TOKEN": "hf_secret"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, env=environment(**address), capture_output=True, text=True
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("engine.errors.UserError: the hub does not take me/model (")
    assert "hf_secret" not in done.stderr
