"""Open a checkpoint for evaluation, and build its model."""

import logging
import os
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from engine.checkpoints.checkpoint_file import checked, is_ours, lacking
from engine.errors import UserError, reason
from engine.options.arguments import parsed_by_name
from engine.options.config import MODEL_SCHEMA, EvalConfig
from models import FAMILIES, ModelConfig, ModelError, build_model, has_average, load_resized, read_file, weights_in

log = logging.getLogger(__name__)


def open_trained(checkpoint: str | None, needed: bool = True, has_model: bool = False) -> dict[str, Any] | None:
    """Return the content of a checkpoint of this project; None if the file contains only weights.

    Args:
        checkpoint: path of the file, or None.
        needed: whether a checkpoint is required.
        has_model: whether the user chose the model. Then a checkpoint without the settings of its model, or of an
            unknown family, counts as a file of weights.

    Raises:
        UserError: if a checkpoint is required and not named, the file does not exist, it lacks the settings of its
            model, or its family is unknown.
        ModelError: if the file cannot be read.
    """
    if checkpoint is None:
        if not needed:
            return None
        raise UserError("no checkpoint: add checkpoint=PATH, such as outputs/quickstart/checkpoints/last.pt")
    path = Path(checkpoint)
    if not path.exists():
        raise UserError(f"there is no checkpoint {path}: set checkpoint=PATH to a file")
    content = read_file(path)
    if not is_ours(content):
        return None
    state = checked(content, path)
    if missing := lacking(state):
        problem = f"{path} lacks {', '.join(missing)}: add model=NAME to read only its weights"
    elif state["family"] not in FAMILIES:  # of a newer version, or of a fork
        problem = (
            f"{path} has a model of the family {state['family']}, which this version does not know: use the version "
            "that trained it, or add model=NAME to read only its weights"
        )
    else:
        return state
    if has_model:
        return None
    raise UserError(problem)


def implied_family(arguments: list[str]) -> list[str]:
    """Return the argument that selects the options of the checkpoint's model family.

    It is needed if the user typed ``model.…`` options without ``model=``: Hydra does not know these options then, and
    would refuse them before the checkpoint is read.

    Raises:
        UserError: or ModelError, if the checkpoint cannot be read.
    """
    typed = parsed_by_name(arguments)
    file = os.path.expanduser(str(typed.get("checkpoint", "")))
    if "model" in typed or not any(key.startswith("model.") for key in typed) or not os.path.isfile(file):
        return []
    trained = open_trained(file)
    return [f"{MODEL_SCHEMA}={trained['family']}"] if trained else []


def model_settings(state: dict[str, Any]) -> ModelConfig:
    """Return the settings of the model in a checkpoint, from the content of the checkpoint.

    Raises:
        ModelError: if this version has no such option, or it cannot have that value.
    """
    try:
        settings = OmegaConf.to_object(OmegaConf.merge(FAMILIES[state["family"]], state["config"]["model"]))
    except OmegaConfBaseException as error:
        raise ModelError(
            f"the model in the checkpoint has options that this version does not take ({reason(error)}): use the "
            "version that trained it"
        ) from error
    assert isinstance(settings, ModelConfig)
    return settings


def trained_model(cfg: EvalConfig, trained: dict[str, Any] | None, num_classes: int) -> nn.Module:
    """Build the model and load the checkpoint's weights. Position tables are resized to fit ``data.crop``."""
    model = build_model(cfg.model, num_classes, cfg.data.crop)
    if cfg.checkpoint is not None:
        for notice in load_resized(model, _weights(cfg, trained), str(cfg.checkpoint)):
            log.info("%s", notice)
    return model


def _weights(cfg: EvalConfig, trained: dict[str, Any] | None) -> dict[str, Tensor]:
    averaged = cfg.eval.weights == "ema"
    if trained is None:
        content = read_file(str(cfg.checkpoint))
        if averaged and has_average(content):
            log.info("evaluating the moving average in %s: eval.weights=raw takes the trained weights", cfg.checkpoint)
        return weights_in(content, str(cfg.checkpoint), averaged)
    return trained["ema" if averaged and trained.get("ema") is not None else "model"]
