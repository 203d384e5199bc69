"""Translates timm's operations: from a name and a magnitude to a plain operation with one argument."""

from collections.abc import Callable
from enum import IntEnum, auto

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Argument = Callable[[Floats, Floats], Floats]  # from levels (1 = magnitude 10) and uniforms to arguments

STEPS = 10  # timm's magnitudes count tenths of an operation's range


class Op(IntEnum):
    """An operation of :mod:`data.augment.image_ops` or :mod:`data.augment.warps`, and the unit of its argument.

    Operations that the device does together are neighbours. Those up to ``ROTATE`` move pixels along x, and those from
    ``ROTATE`` on along y.
    """

    NONE = 0
    AUTOCONTRAST = auto()  # no argument; the next two have none either
    EQUALIZE = auto()
    INVERT = auto()
    POSTERIZE = auto()  # bits kept, 0 to 8
    SOLARIZE = auto()  # first value that is inverted, 0 to 256
    SOLARIZE_ADD = auto()  # what is added to values below 128, 0 to 128
    BRIGHTNESS = auto()  # factor, 1 = unchanged; the same for the next three
    COLOR = auto()
    CONTRAST = auto()
    SHARPNESS = auto()
    BLUR = auto()  # Pillow's radius, 0 to 2 pixels
    SHEAR_X = auto()  # shift in pixels from one row to the next
    TRANSLATE_X = auto()  # share of the image's width
    ROTATE = auto()  # degrees, counter-clockwise
    SHEAR_Y = auto()  # shift in pixels from one column to the next
    TRANSLATE_Y = auto()  # share of the image's height


def _nothing(level: Floats, u: Floats) -> Floats:
    return np.zeros_like(level)


def either_way(values: Floats, u: Floats) -> Floats:
    """Values with a random sign."""
    return np.where(u < 0.5, -values, values)


def _signed(most: float) -> Argument:
    return lambda level, u: either_way(level * most, u)


def _bits(level: Floats) -> Floats:
    return np.trunc(level * 4)


def _threshold(level: Floats) -> Floats:
    return np.minimum(256, np.trunc(level * 256))


def _enhance(level: Floats, u: Floats) -> Floats:
    return level * 1.8 + 0.1


def _enhance_increasing(level: Floats, u: Floats) -> Floats:
    return np.maximum(0.1, 1 + either_way(level * 0.9, u))


# timm's names and its LEVEL_TO_ARG. timm's translations by a number of pixels are left out: no policy has them.
LEVELS: dict[str, tuple[Op, Argument]] = {
    "AutoContrast": (Op.AUTOCONTRAST, _nothing),
    "Equalize": (Op.EQUALIZE, _nothing),
    "Invert": (Op.INVERT, _nothing),
    "Rotate": (Op.ROTATE, _signed(30)),
    "Posterize": (Op.POSTERIZE, lambda level, u: np.minimum(8, _bits(level))),
    "PosterizeIncreasing": (Op.POSTERIZE, lambda level, u: np.maximum(0, 4 - _bits(level))),
    "PosterizeOriginal": (Op.POSTERIZE, lambda level, u: np.minimum(8, 4 + _bits(level))),
    "Solarize": (Op.SOLARIZE, lambda level, u: _threshold(level)),
    "SolarizeIncreasing": (Op.SOLARIZE, lambda level, u: 256 - _threshold(level)),
    "SolarizeAdd": (Op.SOLARIZE_ADD, lambda level, u: np.minimum(128, np.trunc(level * 110))),
    "Color": (Op.COLOR, _enhance),
    "ColorIncreasing": (Op.COLOR, _enhance_increasing),
    "Contrast": (Op.CONTRAST, _enhance),
    "ContrastIncreasing": (Op.CONTRAST, _enhance_increasing),
    "Brightness": (Op.BRIGHTNESS, _enhance),
    "BrightnessIncreasing": (Op.BRIGHTNESS, _enhance_increasing),
    "Sharpness": (Op.SHARPNESS, _enhance),
    "SharpnessIncreasing": (Op.SHARPNESS, _enhance_increasing),
    "ShearX": (Op.SHEAR_X, _signed(0.3)),
    "ShearY": (Op.SHEAR_Y, _signed(0.3)),
    "TranslateXRel": (Op.TRANSLATE_X, _signed(0.45)),
    "TranslateYRel": (Op.TRANSLATE_Y, _signed(0.45)),
    "Desaturate": (Op.COLOR, lambda level, u: 0.5 - 0.5 * np.minimum(1, level)),
    "GaussianBlur": (Op.BLUR, lambda level, u: 0.1 + 1.9 * np.minimum(1, level)),
    "GaussianBlurRand": (Op.BLUR, lambda level, u: 0.1 + u * (2 * np.minimum(1, level) - 0.1)),
}


def operations(
    names: list[str], chosen: NDArray[np.int64], level: Floats, u: Floats
) -> tuple[NDArray[np.int8], Floats]:
    """Operations and their arguments; all arrays have the same shape.

    Args:
        names: timm's names of the operations to choose from.
        chosen: indices into ``names``.
        level: magnitudes divided by 10.
        u: uniforms, for random signs and the like.
    """
    ops = np.array([LEVELS[name][0] for name in names], dtype=np.int8)[chosen]
    args = np.zeros(chosen.shape)
    for place, name in enumerate(names):
        here = chosen == place
        args[here] = LEVELS[name][1](level[here], u[here])
    return ops, args
