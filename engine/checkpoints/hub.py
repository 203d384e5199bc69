"""Hand a trained model to others: a folder in the form that timm's models have on the Hugging Face hub."""

import math
import shutil
from pathlib import Path
from typing import Any

import timm
from timm.models import save_for_hf
from torch import nn

from data import DataConfig
from data.config import evaluation_side
from engine.checkpoints.saved_model import model_settings, open_trained
from engine.errors import UserError, reason
from engine.run_dir import RunDirectory
from models import build_model, load_resized

FILES = ("README.md", "config.json", "model.safetensors", "model.pt2", "model.onnx")
# Options that the card shows, beside whole groups.
RECIPE = ("epochs", "max_steps", "batch_size", "seed", "amp", "ema", "recipe")
GROUPS = ("optim", "schedule", "augment")


class TrainedModel:
    """A model from a run's checkpoint.

    Args:
        run: the run's directory.
        checkpoint: name of the file in its ``checkpoints/``.
        weights: ``ema``, which are the raw weights where the run had no average, or ``raw``.

    Attributes:
        state: the content of the checkpoint.
        weights: which weights the model has, ``ema`` or ``raw``.
        model: in evaluation mode, on the CPU.
        side: side of its images in pixels.

    Raises:
        UserError: if the run has no such checkpoint.
    """

    def __init__(self, run: Path, checkpoint: str = "last.pt", weights: str = "ema"):
        self.directory = RunDirectory(run)
        file = self.directory.checkpoints / checkpoint
        if not file.is_file():
            there = ", ".join(sorted(path.name for path in self.directory.checkpoints.glob("*.pt")))
            advice = f"it has {there}" if there else "give the folder of a run, such as outputs/quickstart"
            raise UserError(f"{run} has no checkpoints/{checkpoint}: {advice}")
        state = open_trained(str(file))
        if state is None:
            raise UserError(f"{file} holds only weights: export it with --model NAME --weights {file}")
        self.state = state
        self.weights = "ema" if weights == "ema" and state.get("ema") is not None else "raw"
        self.data = _data_of(state)
        self.side = self.data.crop
        self.model: nn.Module = build_model(model_settings(state), len(state["classes"]), self.side).eval()
        load_resized(self.model, state["ema" if self.weights == "ema" else "model"], str(file))

    def write(self, folder: Path, license: str | None = None) -> None:
        """Write ``model.safetensors``, ``config.json`` and the card ``README.md``.

        ``timm.create_model("local-dir:FOLDER", pretrained=True)`` then gives the same model, after ``import models`` if
        the architecture is one of this project.

        Raises:
            UserError: if the folder cannot be written, or the checkpoint lacks what the card shows.
        """
        crop_pct = self.side / evaluation_side(self.data)
        if int(self.side / crop_pct) != evaluation_side(self.data):  # timm computes this side so, and rounds down
            crop_pct = math.nextafter(crop_pct, 0)
        data = {
            "input_size": (3, self.side, self.side),
            "interpolation": "bilinear" if self.data.interpolation == "bilinear" else "bicubic",
            "mean": tuple(self.data.mean),
            "std": tuple(self.data.std),
            "crop_pct": crop_pct,
            "crop_mode": self.data.crop_mode,
        }
        config = {
            "label_names": list(map(str, self.state["classes"])),
            # timm's own values are those of its weights, or of the untrained model.
            "pretrained_cfg": {"license": license, "tag": None},
        }
        try:
            card = self.card(license)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(
                f"the checkpoint in {self.directory.path} lacks settings that the card shows ({reason(error)}): export "
                "its model with --model NAME --weights FILE"
            ) from error
        try:
            with self.model.register_state_dict_post_hook(_own_tensors):
                save_for_hf(self.model, str(folder), model_config=config, safe_serialization=True, data_config=data)
            shutil.copymode(folder / "config.json", folder / "model.safetensors")  # safetensors: for the owner alone
            (folder / "README.md").write_text(card, encoding="utf-8")
        except OSError as error:
            raise UserError(f"{folder} cannot be written ({error.strerror}): choose another --to") from error

    def card(self, license: str | None = None) -> str:
        """The model card: what the model is, how it was trained, how good it is, and how to load it.

        Args:
            license: the licence of the weights, as the hub names it.
        """
        warmup = self.state["config"]["schedule"].get("warmup_epochs", 0)
        config, name = self.state["config"], self.state["config"]["model"]["name"]
        start = config["checkpoint"].get("start")
        parameters = sum(p.numel() for p in self.model.parameters()) / 1e6
        shown = [f"{key}: {config[key]}" for key in RECIPE if config.get(key) is not None]
        shown += [f"{g}.{key}: {value}" for g in GROUPS for key, value in config[g].items() if value not in (None, 0)]
        ours = not timm.is_model(name) or timm.models.model_entrypoint(name).__module__.startswith("models")
        first = "import models  # of Coldstart: it registers the architecture in timm\n" if ours else ""
        return CARD.format(
            name=name,
            parameters=parameters,
            side=self.side,
            classes=len(self.state["classes"]),
            data=_literal(config["data"]["name"]),
            when=_place(self.state),
            weights="the average of the weights (EMA)" if self.weights == "ema" else "the weights of the last step",
            start=f" The run started from the weights in {_literal(Path(start).name)}." if start else "",
            accuracy=self._accuracy(),
            first=first,
            warmup=f"with {warmup:g} epochs of learning-rate warm-up" if warmup else "without learning-rate warm-up",
            license=f"\nlicense: {license}" if license else "",
            recipe="\n".join(map(_in_one_line, shown)),
        )

    def _accuracy(self) -> str:
        """A table of the validation that scored these weights, or a sentence where there was none."""
        scored = self.state["config"]["eval"]["weights"]
        validations = [line for line in self.directory.read_metrics() if line["split"] == "val"]
        found = [line for line in validations if line["step"] == self.state["step"]]
        if not found or (self.weights != scored and self.state.get("ema") is not None):
            return "The run has not validated these weights."
        line = found[-1]
        table = "| validation images | top-1 | top-5 |\n| --- | --- | --- |\n"
        return f"{table}| {int(line['images'])} | {line['top1']:.2f} % | {line['top5']:.2f} % |"


def _own_tensors(_: nn.Module, state: dict[str, Any], *__: Any) -> None:
    """Give each name in a state dict a tensor of its own: safetensors refuses one that several layers share."""
    state.update({name: tensor.clone() for name, tensor in state.items()})


def _place(state: dict[str, Any]) -> str:
    """Where in the training a checkpoint was saved."""
    when = "in" if state["step_in_epoch"] else "after"
    return f"{when} epoch {state['epoch'] + bool(state['step_in_epoch'])} ({int(state['step'])} steps)"


def _in_one_line(text: str) -> str:
    """Text without line breaks. So text from another's checkpoint cannot end the block of code around it."""
    return " ".join(text.split())


def _literal(text: str) -> str:
    """Text in the card that is shown as it is: a checkpoint of another may hold Markdown and HTML."""
    return "`" + _in_one_line(text).replace("`", "'") + "`"


def _data_of(state: dict[str, Any]) -> DataConfig:
    """The options of the images, without those that this version does not know."""
    known = DataConfig.__dataclass_fields__
    return DataConfig(**{key: value for key, value in state["config"]["data"].items() if key in known})


def push(folder: Path, repository: str) -> str:
    """Upload a handed-over model to a repository of the Hugging Face hub; return its address.

    A repository that does not exist is made, and is public. Other files in the folder stay where they are.

    Raises:
        UserError: if the hub refuses it or cannot be reached. The message has no token in it.
    """
    from huggingface_hub import HfApi

    try:
        hub = HfApi()
        hub.create_repo(repository, exist_ok=True)
        sent = hub.upload_folder(
            repo_id=repository, folder_path=folder, allow_patterns=list(FILES), commit_message="Add the model"
        )
        return str(sent)
    except Exception as error:  # the hub's client raises the errors of the libraries that it uses, too
        raise UserError(
            f"the hub does not take {repository} ({reason(error)}): log in with 'hf auth login', or upload {folder} "
            "yourself"
        ) from error


CARD = """---
tags:
- image-classification
- timm
library_name: timm
pipeline_tag: image-classification{license}
---
# {name}

A {name} with {parameters:.2f} M parameters for images of {side} × {side} pixels in {classes} classes, trained with
Coldstart {warmup}. The file holds {weights}, {when}, on {data}.{start}

## Accuracy

{accuracy}

## Load it

With timm:

```python
import timm
{first}
model = timm.create_model("local-dir:PATH_OF_THIS_FOLDER", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
```

With torch alone, if the folder has `model.pt2`: `torch.export.load("model.pt2").module()(images)`. Images are
normalised as `config.json` says.

## Recipe

```yaml
{recipe}
```
"""
