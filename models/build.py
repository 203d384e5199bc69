"""From the model options to a model, by way of timm's registry."""

import dataclasses
import difflib
from typing import Any

import timm
from torch import nn

from models.config import ModelConfig
from models.errors import ModelError

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
        model: Any = timm.create_model(cfg.name, pretrained=False, **arguments)
    except ModelError:
        raise
    except (TypeError, ValueError, AssertionError) as error:
        raise ModelError(f"model '{cfg.name}' cannot be built with {arguments}: {error}") from error
    if cfg.grad_checkpointing:
        model.set_grad_checkpointing(True)
    return model


def refuse_unknown(name: str) -> None:
    """Raise where no model has that name, with the nearest that there are."""
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists all"
        raise ModelError(f"there is no model '{name}': {hint}")


def _takes_img_size(name: str) -> bool:
    """Whether a model is built for one image size."""
    default = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return default is not None and bool(default.fixed_input_size)
