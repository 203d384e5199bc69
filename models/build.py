"""Build a model from its options, through timm's registry."""

import copy
import dataclasses
import difflib
from typing import Any

import timm
import torch
from torch import Tensor, nn

from models.config import ModelConfig
from models.errors import ModelError
from models.kernels import set_kernels
from models.registry import registration

# Exceptions of timm's models for options they cannot be built with.
_REFUSALS = (TypeError, ValueError, AssertionError, AttributeError, ArithmeticError, LookupError, RuntimeError)
_NOT_ARGUMENTS = {"name", "num_classes", "img_size", "grad_checkpointing", "kernels", "kwargs"}


def build_model(cfg: ModelConfig, num_classes: int, img_size: int) -> nn.Module:
    """Build the model that ``cfg`` names.

    Args:
        cfg: the options; every field of the family's dataclass is an argument of the model.
        num_classes: classes of the data, used if ``cfg.num_classes`` is null.
        img_size: side of the images in pixels, used if ``cfg.img_size`` is null.

    Raises:
        ModelError: if no model has that name, or it cannot be built with these options.
    """
    refuse_unknown(cfg.name)
    fields = {f.name: getattr(cfg, f.name) for f in dataclasses.fields(cfg) if f.name not in _NOT_ARGUMENTS}
    arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    arguments |= getattr(cfg, "kwargs", {})
    if taken := next((name for name in ("pretrained", "checkpoint_path") if name in arguments), None):
        raise ModelError(f"weights come from a file of yours: leave out model.kwargs.{taken}, and add checkpoint=FILE")
    arguments |= {"num_classes": cfg.num_classes or num_classes}
    side = cfg.img_size or img_size
    # timm's convolutional networks accept any image size and have no such argument.
    if _takes_img_size(cfg.name):
        arguments["img_size"] = side
    try:
        model = _create(cfg.name, arguments)
        if cfg.grad_checkpointing:
            model.set_grad_checkpointing(True)
        set_kernels(model, getattr(cfg, "kernels", "auto"))
    except ModelError:
        raise
    except _REFUSALS as error:
        raise ModelError(f"model '{cfg.name}' cannot be built with {arguments}: {_reason(error)}") from error
    _refuse_unfit(model, cfg.name, arguments["num_classes"], side)
    return model


def _refuse_unfit(model: nn.Module, name: str, num_classes: int, side: int) -> None:
    """Raise unless the model gives one score per class for RGB images of ``side`` pixels."""
    try:
        try:
            scores = _scores_of_two(copy.deepcopy(model).to("meta"), side, "meta")
        except _REFUSALS:  # either the model fails or the meta device, which lacks some operations
            scores = _scores_of_two(model, side, "cpu")
    except _REFUSALS as error:
        raise ModelError(f"model '{name}' cannot take images of 3 × {side} × {side}: {_reason(error)}") from error
    shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
    if shape != (2, num_classes):
        raise ModelError(
            f"model '{name}' outputs {shape} for two images, not one score per class (2, {num_classes}): "
            f"choose another model, or remove the model.kwargs that change its output"
        )


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
        # A fifth of timm's architectures have no stochastic depth. Without the argument their rate is 0.
        if arguments["drop_path_rate"] != 0 or "drop_path_rate" not in str(error):
            raise
    return timm.create_model(name, pretrained=False, **{k: v for k, v in arguments.items() if k != "drop_path_rate"})


def refuse_unknown(name: str) -> None:
    """Raise if no model has that name. The message lists the most similar names."""
    if not timm.is_model(name):
        name = name.removeprefix("hf-hub:").removeprefix("hf_hub:").removeprefix("timm/")
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists all"
        raise ModelError(f"there is no model '{name}': {hint}")
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # the architecture exists, but not the pretrained tag after the dot
        raise ModelError(f"there is no model '{name}': leave out the part after the dot") from error


def _takes_img_size(name: str) -> bool:
    """Whether a model is built for one image size."""
    default = registration(name)
    return default is not None and bool(default.fixed_input_size)
