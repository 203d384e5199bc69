"""Weights from files of any form, and loading them into models."""

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from timm.utils import unwrap_model
from torch import Tensor, nn

from models.errors import ModelError
from models.released import to_our_names
from models.weight_files import read_file

# Where files keep their weights: the authors', timm's, Lightning's, DeepSpeed's, and our own checkpoints.
AVERAGED = ("state_dict_ema", "model_ema", "ema")
TRAINED = ("state_dict", "model", "module")
# Tables that a model computes from its sizes, and that older files hold beside the weights.
COMPUTED = ("relative_position_index", "relative_coords_table", "attn_mask")
# A number that BatchNorm counts since torch 0.4.1 and that changes no output; older files lack it.
COUNTED = ".num_batches_tracked"
WRAPPERS = re.compile(r"^((module|_orig_mod)\.)+")  # what DistributedDataParallel and torch.compile put before names


def read_weights(path: str | Path, averaged: bool = True) -> dict[str, Tensor]:
    """The weights in a file, whatever it wraps them in, under the names they have there.

    Args:
        path: a ``.safetensors`` file or one of ``torch.save``: of this project, of timm, of the authors of a model.
        averaged: prefer the moving average of the weights, where the file holds one.

    Raises:
        ModelError: as :func:`read_file`, or if there are no weights in it.
    """
    content = read_file(path)
    names = (*AVERAGED, *TRAINED) if averaged else (*TRAINED, *AVERAGED)
    while wrapped := _wrapped_in(content, names):
        content = wrapped
    if not _are_weights(content):
        raise ModelError(f"{path} holds no weights: expected a dictionary of tensors")
    return {WRAPPERS.sub("", name): value for name, value in content.items()}


def _wrapped_in(content: Any, names: Iterable[str]) -> dict[str, Any] | None:
    """The first dictionary that a dictionary holds under one of the names."""
    found = (content.get(name) for name in names) if isinstance(content, dict) else ()
    return next((value for value in found if isinstance(value, dict)), None)


def _are_weights(content: Any) -> bool:
    if not isinstance(content, dict) or not content:
        return False
    return all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())


def load_weights(model: nn.Module, weights: str | Path | dict[str, Tensor], source: str | None = None) -> None:
    """Load weights into a model; every name and shape must match, once the authors' names are ours.

    Args:
        model: takes the weights; torch.compile or DistributedDataParallel may be around it.
        weights: a file of them (see :func:`read_weights`), or the weights.
        source: what an error calls them; None: the file.

    Raises:
        ModelError: naming the weights that are missing, unexpected or of another shape.
    """
    model = unwrap_model(model)
    if not isinstance(weights, dict):
        source, weights = source or str(weights), read_weights(weights)
    weights = named_for(model, weights)
    own = model.state_dict()
    weights = {name: own[name] for name in own if name.endswith(COUNTED)} | weights
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
    weights = to_our_names(_without_prefix(weights, own))
    return {name: v for name, v in weights.items() if name in own or not name.endswith(COMPUTED)}


def _without_prefix(weights: dict[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """Weights of a model that was a part of a larger module, as Lightning saves them (``model.``), under its names."""
    prefix = next(iter(weights), "").partition(".")[0] + "."
    if not all(name.startswith(prefix) for name in weights) or any(name.startswith(prefix) for name in own):
        return weights
    inner = {WRAPPERS.sub("", name.removeprefix(prefix)): value for name, value in weights.items()}
    return inner if not inner.keys().isdisjoint(own) else weights
