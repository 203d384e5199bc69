"""From the model options to a model, by way of timm's registry."""

import dataclasses
import difflib
from typing import Any

import timm
from torch import nn

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
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelError(f"model '{cfg.name}' cannot be built with {arguments}: {reason}") from error
    return model


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
