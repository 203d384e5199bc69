"""Prepare evaluation images as a model's timm registration says, for weights without settings of their own."""

import logging
from typing import Any

from omegaconf import DictConfig
from timm.data import resolve_data_config

from data import DataConfig
from engine.errors import UserError
from models import registration

log = logging.getLogger(__name__)

# The supported values. The first one replaces a value that is not supported, such as crop_mode="border".
SUPPORTED = {"interpolation": ("bicubic", "bilinear"), "crop_mode": ("center", "squash")}


def apply_registration(composed: DictConfig, typed: set[str]) -> None:
    """Set the options of ``data`` as the model's registration says, except those that the user typed.

    With ``data=NAME`` the data options stay as they are, and a warning lists the differences from the registration. A
    benchmark uses only the image size.

    Args:
        composed: the config from Hydra.
        typed: the keys of the options that the user typed.

    Raises:
        UserError: if the model is registered for images that are not supported here.
    """
    name, data = composed.model.name, composed.data
    wanted = registered_options(name, data.crop if "data.crop" in typed else None)
    if not wanted:
        log.warning("timm does not say how images for %s are prepared: the options of data are used as they are", name)
    if composed.benchmark:
        wanted = {key: value for key, value in wanted.items() if key == "crop"}
    if "data.resize" in typed:
        wanted.pop("crop_ratio", None)
    wanted = {key: value for key, value in wanted.items() if f"data.{key}" not in typed}
    taken = {key: _supported(key, value) for key, value in wanted.items()}
    if "data" in typed:
        if other := {key: value for key, value in taken.items() if data[key] != value}:
            log.warning("%s is registered with %s, but data=%s was chosen", name, _said(other), data.name)
        return
    data.update(taken)
    if taken and not composed.benchmark:
        log.info("images are prepared as %s is registered: %s", name, _said(taken))
    if lacking := {key: value for key, value in wanted.items() if taken[key] != value}:
        instead = _said({key: taken[key] for key in lacking})
        log.warning(
            "%s is registered with %s, which is not supported here: %s is used instead", name, _said(lacking), instead
        )


def other_normalisation(name: str, data: DataConfig) -> list[str]:
    """Lines for the log if a training from others' weights normalises images differently from timm's registration.

    Args:
        name: name of the model.
        data: how the training normalises its images.
    """
    registered = registration(name)
    wanted = {} if registered is None else {key: list(getattr(registered, key)) for key in ("mean", "std")}
    if any(getattr(data, key) != value for key, value in wanted.items()):
        options = " ".join(f"data.{key}={value}".replace(" ", "") for key, value in wanted.items())
        return [f"the images have other colours than {name} is registered with: add {options} if its weights had them"]
    return []


def registered_options(name: str, crop: int | None = None) -> dict[str, Any]:
    """Return the options of ``data`` to evaluate a model as timm validates it: at its test size, if it has one.

    Args:
        name: name of the model.
        crop: side of the images in pixels, if the user chose it. If it equals the training size, the crop ratio is that
            of training; otherwise it is that of the test size.

    Returns:
        The options; empty if timm has no registration for the model.

    Raises:
        UserError: if the model needs images that are not square, or do not have three channels.
    """
    registered = registration(name)
    if registered is None:
        return {}
    found = resolve_data_config(pretrained_cfg=registered.to_dict(), use_test_size=True)
    if crop is not None and crop == registered.input_size[-1]:
        found |= {"crop_pct": registered.crop_pct}
    channels, height, width = found["input_size"]
    if channels != 3:
        raise UserError(
            f"{name} is registered for images of {channels} channels, but images here have 3: choose another model"
        )
    if height != width and crop is None:
        raise UserError(
            f"{name} is registered for images of {height} × {width} pixels, but images here are square: "
            f"add data.crop={width}, or another size"
        )
    return {
        "crop": crop or height,
        "mean": list(found["mean"]),
        "std": list(found["std"]),
        "crop_ratio": found["crop_pct"],
        "crop_mode": found["crop_mode"],
        "interpolation": found["interpolation"],
    }


def _supported(key: str, value: Any) -> Any:
    if key == "crop_ratio":
        return min(value, 1.0)  # above 1, timm pads the image with a border
    return value if key not in SUPPORTED or value in SUPPORTED[key] else SUPPORTED[key][0]


def _said(options: dict[str, Any]) -> str:
    return ", ".join(f"data.{key}={value}" for key, value in options.items())
