"""Reading weights from files, whoever wrote them and without running what they hold; loading them into models."""

import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from timm.models import clean_state_dict
from torch import Tensor, nn

from models.errors import ModelError
from models.released import to_our_names

# Where files keep their weights: the authors', timm's, and our own checkpoints.
AVERAGED = ("state_dict_ema", "model_ema", "ema")
TRAINED = ("state_dict", "model")
# Settings that authors pickle beside the weights. They become a plain OrderedDict, which torch builds from any file
# anyway, so that nothing more is trusted; torch fills no other subclass of dict.
STAND_INS: list[Any] = [(OrderedDict, "yacs.config.CfgNode"), (OrderedDict, "argparse.Namespace")]
# Tables that a model computes from its sizes, and that older files hold beside the weights.
COMPUTED = ("relative_position_index", "relative_coords_table", "attn_mask")


def read_file(path: str | Path) -> Any:
    """The content of a ``.safetensors`` or torch file, on the CPU: tensors, numbers, text and containers of them.

    Raises:
        ModelError: if the file is missing, damaged, or names any code but the harmless.
    """
    path = Path(path)
    if path.is_dir():
        raise ModelError(f"{path} is a folder: name a file of weights in it")
    if not path.is_file():
        raise ModelError(f"there is no file {path}: name a file of weights")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with torch.serialization.safe_globals(STAND_INS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds for a damaged file
        raise ModelError(f"{path} cannot be read: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """One line of the many of an error; torch's own advice, to trust the file, is left out."""
    message = str(error)
    if match := re.search(r"GLOBAL (\S+)", message):
        return f"it holds {match[1]}, which may run code and is not loaded: save the weights alone"
    if match := re.search(r"WeightsUnpickler error: *(.+)", message):
        message = match[1]
    return f"it is damaged or holds no weights ({(message or type(error).__name__).splitlines()[0]})"


def read_weights(path: str | Path, averaged: bool = True) -> dict[str, Tensor]:
    """The weights in a file, whatever it wraps them in, under the names they have there.

    Args:
        path: a ``.safetensors`` file or one of ``torch.save``: of this project, of timm, of the authors of a model.
        averaged: prefer the moving average of the weights, where the file holds one.

    Raises:
        ModelError: as :func:`read_file`, or if there are no weights in it.
    """
    content = read_file(path)
    for name in (*AVERAGED, *TRAINED) if averaged else (*TRAINED, *AVERAGED):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
            break
    if not _are_weights(content):
        raise ModelError(f"{path} holds no weights: expected a dictionary of tensors")
    return clean_state_dict(content)


def _are_weights(content: Any) -> bool:
    if not isinstance(content, dict) or not content:
        return False
    return all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())


def load_weights(model: nn.Module, weights: str | Path | dict[str, Tensor], source: str | None = None) -> None:
    """Load weights into a model; every name and shape must match, once the authors' names are ours.

    Args:
        model: takes the weights.
        weights: a file of them (see :func:`read_weights`), or the weights.
        source: what an error calls them; None: the file.

    Raises:
        ModelError: naming the weights that are missing, unexpected or of another shape.
    """
    if not isinstance(weights, dict):
        source, weights = source or str(weights), read_weights(weights)
    weights = named_for(model, weights)
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
        raise ModelError(f"{source or 'the file'} is of another model: weights {'; '.join(complaints)}")
    model.load_state_dict(weights)


def named_for(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the model's names, without the tables that the model computes."""
    own = model.state_dict().keys()
    return {name: v for name, v in to_our_names(weights).items() if name in own or not name.endswith(COMPUTED)}
