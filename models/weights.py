"""Reading weights from files, safely."""

from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from models.errors import ModelError

CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model")  # where timm and others put the weights


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights in a ``.safetensors`` file or a torch file of weights, whatever it wraps them in.

    Raises:
        ModelError: if the file is missing, damaged, or holds anything but weights.
    """
    if not path.is_file():
        raise ModelError(f"there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            content: Any = safetensors.torch.load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds for a damaged file
        raise ModelError(f"{path} cannot be read as weights: {str(error).splitlines()[0]}") from error
    for name in CONTAINERS:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
            break
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ModelError(f"{path} holds no weights: expected a dictionary of tensors")
    return {name.removeprefix("module."): value for name, value in content.items()}


def load_weights(model: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Load weights into a model; every name and shape must match.

    Raises:
        ModelError: naming the weights that are missing, unexpected or of another shape.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in weights]
    unexpected = [name for name in weights if name not in own]
    reshaped = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    complaints = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
        if names
    ]
    if complaints:
        raise ModelError(f"{source} is of another model: weights {'; '.join(complaints)}")
    model.load_state_dict(weights)
