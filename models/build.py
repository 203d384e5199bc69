"""From the model options to a model, by way of timm's registry."""

import copy
import dataclasses
import difflib
from typing import Any

import timm
import torch
from torch import Tensor, nn

from models.config import ModelConfig
from models.errors import ModelError
from models.registry import registration

# What timm's models raise for options they cannot be built with.
_REFUSALS = (TypeError, ValueError, AssertionError, AttributeError, ArithmeticError, LookupError, RuntimeError)
_NOT_ARGUMENTS = {"name", "num_classes", "img_size", "grad_checkpointing", "kwargs"}


def build_model(cfg: ModelConfig, num_classes: int, img_size: int) -> nn.Module:
    """Build the model that ``cfg`` names.

    Args:
        cfg: the options; every field of the family's dataclass is an argument of the model.
        num_classes: classes of the data, used where ``cfg.num_classes`` is null.
        img_size: side of the images in pixels, used where ``cfg.img_size`` is null.

    Raises:
        ModelError: if no model has that name, or it cannot be built with these options.
    """
    refuse_unknown(cfg.name)
    fields = {f.name: getattr(cfg, f.name) for f in dataclasses.fields(cfg) if f.name not in _NOT_ARGUMENTS}
    arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    arguments |= getattr(cfg, "kwargs", {})
    if "pretrained" in arguments:
        raise ModelError("weights are not downloaded here: leave out model.kwargs.pretrained, and add checkpoint=FILE")
    arguments |= {"num_classes": cfg.num_classes or num_classes}
    side = cfg.img_size or img_size
    # Convolutional networks of timm take any size and know no such argument.
    if _takes_img_size(cfg.name):
        arguments["img_size"] = side
    try:
        model = _create(cfg.name, arguments)
        if cfg.grad_checkpointing:
            model.set_grad_checkpointing(True)
    except ModelError:
        raise
    except _REFUSALS as error:
        raise ModelError(f"model '{cfg.name}' cannot be built with {arguments}: {_reason(error)}") from error
    _refuse_unfit(model, cfg.name, arguments["num_classes"], side)
    return model


def _refuse_unfit(model: nn.Module, name: str, num_classes: int, side: int) -> None:
    """Raise where a model does not give one score a class for images of three channels and ``side`` pixels."""
    try:
        try:
            scores = _scores_of_two(copy.deepcopy(model).to("meta"), side, "meta")
        except _REFUSALS:  # the model's fault or that of the meta device, which cannot do everything
            scores = _scores_of_two(model, side, "cpu")
    except _REFUSALS as error:
        raise ModelError(f"model '{name}' cannot take images of 3 × {side} × {side}: {_reason(error)}") from error
    shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
    if shape != (2, num_classes):
        raise ModelError(f"model '{name}' gives {shape} for two images, not one score a class: (2, {num_classes})")


def _scores_of_two(model: nn.Module, side: int, device: str) -> Any:
    training = model.training
    with torch.no_grad():
        scores = model.eval()(torch.zeros(2, 3, side, side, device=device))
    model.train(training)
    return scores


def _reason(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _create(name: str, arguments: dict[str, Any]) -> Any:
    try:
        return timm.create_model(name, pretrained=False, **arguments)
    except TypeError as error:
        # A fifth of timm's architectures knows no stochastic depth: a rate of 0 is what they have.
        if arguments["drop_path_rate"] != 0 or "drop_path_rate" not in str(error):
            raise
    return timm.create_model(name, pretrained=False, **{k: v for k, v in arguments.items() if k != "drop_path_rate"})


def refuse_unknown(name: str) -> None:
    """Raise where no model has that name, with the nearest that there are."""
    if not timm.is_model(name):
        name = name.removeprefix("hf-hub:").removeprefix("hf_hub:").removeprefix("timm/")
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists all"
        raise ModelError(f"there is no model '{name}': {hint}")
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # the model is there, what follows the point of its name is not
        raise ModelError(f"there is no model '{name}': leave out what follows the point") from error


def _takes_img_size(name: str) -> bool:
    """Whether a model is built for one image size."""
    default = registration(name)
    return default is not None and bool(default.fixed_input_size)
