"""Read weights from files of any layout, and load them into models."""

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import torch
from timm.utils import unwrap_model
from torch import Tensor, nn

from models.errors import ModelError
from models.weights.files import read_file
from models.weights.released import to_our_names

# Keys of the weights in files of the authors, of timm, Lightning and DeepSpeed, and in our own checkpoints.
AVERAGED = ("state_dict_ema", "model_ema", "ema")
TRAINED = ("state_dict", "model", "module")
# Tables that a model computes from its sizes. Older files contain them too.
COMPUTED = ("relative_position_index", "relative_coords_table", "attn_mask")
# BatchNorm's counter, which changes no output. Files from before torch 0.4.1 lack it.
COUNTED = ".num_batches_tracked"
MOST_REPEATED = 2**20  # bytes of a tensor that repeats the numbers of its file, such as a mean for every pixel
WRAPPERS = re.compile(r"^((module|_orig_mod)\.)+")  # prefixes that DistributedDataParallel and torch.compile add


def read_weights(path: str | Path, averaged: bool = True) -> dict[str, Tensor]:
    """The weights in a file, under their names in the file. Dictionaries and prefixes around them are removed.

    Args:
        path: a ``.safetensors`` or ``torch.save`` file of this project, of timm or of the authors of a model.
        averaged: prefer the moving average of the weights if the file has one.

    Raises:
        ModelError: as :func:`read_file`, or if the file holds no weights.
    """
    return weights_in(read_file(path), path, averaged)


def weights_in(content: Any, path: str | Path, averaged: bool = True) -> dict[str, Tensor]:
    """The weights in the content of a file; see :func:`read_weights`. ``path`` is for the error message."""
    names = (*AVERAGED, *TRAINED) if averaged else (*TRAINED, *AVERAGED)
    while wrapped := _wrapped_in(content, names):
        content = wrapped
    if not _are_weights(content):
        raise ModelError(f"{path} holds no weights: expected a dictionary of tensors")
    if odd := next((name for name, value in content.items() if not _is_plain(value)), None):
        raise ModelError(f"{path} holds {odd} not as an ordinary tensor with all its numbers: save it as one")
    return {WRAPPERS.sub("", name): value for name, value in content.items()}


def has_average(content: Any) -> bool:
    """Whether the content of a file has a moving average of the weights beside the trained weights."""
    return None not in (_wrapped_in(content, AVERAGED), _wrapped_in(content, TRAINED))


def _is_plain(value: Tensor) -> bool:
    """Whether a tensor is dense, and is about as large as the numbers that its file has.

    A file of one number may say that it is repeated a billion times, and a computation would then need the memory.
    """
    if value.layout != torch.strided or value.is_quantized or value.is_nested or value.is_meta:
        return False
    size = value.numel() * value.element_size()
    return size <= value.untyped_storage().nbytes() or size <= MOST_REPEATED


def _wrapped_in(content: Any, names: Iterable[str]) -> dict[str, Any] | None:
    """The first dictionary that ``content`` holds under one of the names."""
    found = (content.get(name) for name in names) if isinstance(content, dict) else ()
    return next((value for value in found if isinstance(value, dict)), None)


def _are_weights(content: Any) -> bool:
    if not isinstance(content, dict) or not content:
        return False
    return all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())


def load_weights(model: nn.Module, weights: str | Path | dict[str, Tensor], source: str | None = None) -> None:
    """Load weights into a model. The authors' names are mapped to ours; then every name and shape must match.

    Args:
        model: the model; torch.compile or DistributedDataParallel may wrap it.
        weights: a weight file (see :func:`read_weights`), or a state dict.
        source: name of the weights in error messages; None for the file's path.

    Raises:
        ModelError: if weights are missing, unexpected or of another shape. The message names them.
    """
    model = unwrap_model(model)
    if not isinstance(weights, dict):
        source, weights = source or str(weights), read_weights(weights)
    weights = named_for(model, weights)
    own = model.state_dict()
    weights = {name: own[name] for name in own if name.endswith(COUNTED)} | weights
    missing = [name for name in own if name not in weights]
    unexpected = [name for name in weights if name not in own]
    reshaped = [name for name in own if name in weights and weights[name].shape != own[name].shape]
    shapes = [f"{name} {tuple(weights[name].shape)} instead of {tuple(own[name].shape)}" for name in reshaped]
    complaints = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if complaints:
        why = "; ".join(complaints)
        layers = classifiers(model)
        if not (missing or unexpected) and reshaped == [name for name in own if name.rpartition(".")[0] in layers]:
            classes = len(weights[reshaped[0]])
            why += f"; its classifier has {classes} classes (model.num_classes={classes})"
        raise ModelError(f"{source or 'the file'} holds weights of another model: {why}")
    model.load_state_dict(weights)


def classifiers(model: nn.Module) -> tuple[str, ...]:
    """Names of the layers that timm calls the model's classifiers."""
    found = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    return (found,) if isinstance(found, str) else tuple(found)


def named_for(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the model's names, without the tables that the model computes."""
    own = model.state_dict().keys()
    weights = to_our_names(_without_prefix(weights, own))
    return {name: v for name, v in weights.items() if name in own or not name.endswith(COMPUTED)}


def _without_prefix(weights: dict[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """Remove the prefix of a model that was part of a larger module, as Lightning saves it (``model.``)."""
    prefix = next(iter(weights), "").partition(".")[0] + "."
    if not all(name.startswith(prefix) for name in weights) or any(name.startswith(prefix) for name in own):
        return weights
    inner = {WRAPPERS.sub("", name.removeprefix(prefix)): value for name, value in weights.items()}
    return inner if not inner.keys().isdisjoint(own) else weights
