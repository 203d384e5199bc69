"""What is in a checkpoint, and the model that it makes."""

import logging
import os
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from engine.arguments import typed_values
from engine.checkpoint import checked, is_ours, lacking
from engine.config import MODEL_SCHEMA, EvalConfig
from engine.errors import UserError
from models import build_model, load_resized, read_file, read_weights

log = logging.getLogger(__name__)


def open_trained(checkpoint: str | None, needed: bool = True, has_model: bool = False) -> dict[str, Any] | None:
    """The content of one of our checkpoints, or None where the file holds bare weights.

    Args:
        checkpoint: the file.
        needed: whether there must be one.
        has_model: whether the user chose the model: a checkpoint that does not tell its own counts as bare weights.

    Raises:
        UserError: if none is named, there is no such file, or it does not tell its model.
        ModelError: if it cannot be read.
    """
    if checkpoint is None and not needed:
        return None
    if checkpoint is None:
        raise UserError("no checkpoint: add checkpoint=PATH, such as outputs/quickstart/checkpoints/last.pt")
    path = Path(checkpoint)
    if not path.exists():
        raise UserError(f"there is no checkpoint {path}: set checkpoint=PATH to a file")
    content = read_file(path)
    if not is_ours(content):
        return None
    state = checked(content, path)
    if missing := lacking(state):
        if has_model:
            return None
        raise UserError(f"{path} lacks {', '.join(missing)}: add model=NAME, which reads its weights alone")
    return state


def implied_family(arguments: list[str]) -> list[str]:
    """The argument that gives a model the options of its checkpoint's family, where some are typed without ``model=``.

    Hydra refuses options that it does not know, before the checkpoint is read.

    Raises:
        UserError: or ModelError if the checkpoint cannot be read.
    """
    typed = typed_values(arguments)
    file = os.path.expanduser(str(typed.get("checkpoint", "")))
    if "model" in typed or not any(key.startswith("model.") for key in typed) or not os.path.isfile(file):
        return []
    trained = open_trained(file)
    return [f"{MODEL_SCHEMA}={trained['family']}"] if trained else []


def trained_model(cfg: EvalConfig, trained: dict[str, Any] | None, num_classes: int) -> nn.Module:
    """The model with the checkpoint's weights, its position tables resized to ``data.crop``."""
    model = build_model(cfg.model, num_classes, cfg.data.crop)
    if cfg.checkpoint is not None:
        for notice in load_resized(model, _weights(cfg, trained), str(cfg.checkpoint)):
            log.info("%s", notice)
    return model


def _weights(cfg: EvalConfig, trained: dict[str, Any] | None) -> dict[str, Tensor]:
    averaged = cfg.eval.weights == "ema"
    if trained is None:
        return read_weights(str(cfg.checkpoint), averaged)
    return trained["ema" if averaged and trained.get("ema") is not None else "model"]
