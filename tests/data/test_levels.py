"""The levels of operations are timm's."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image
from timm.data import auto_augment as timm

from data.augment.levels import LEVELS, Op, operations

MAGNITUDES = [*range(11), 0.37, 4.999, 5.001, 8.75, 9.0001, 9.999, 12.0, 30.0]


@contextmanager
def drawn(u: float) -> Iterator[None]:
    """All random numbers that timm draws are ``u``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm.random, "random", lambda: 1 - u)  # timm negates if its number is above 0.5, we do below
        patch.setattr(timm.random, "uniform", lambda low, high: low + u * (high - low))
        yield


def by_timm(name: str, magnitude: float, u: float) -> float | None:
    """timm's argument in the unit of our operation; ``None`` if there is no argument."""
    with drawn(u):
        level = timm.LEVEL_TO_ARG[name]
        args = level(magnitude, {}) if level else ()
        if name == "GaussianBlurRand":

            class Canvas:
                def filter(self, blur):
                    return blur.radius

            return timm.NAME_TO_OP[name](Canvas(), *args)
    if name == "Desaturate":
        return min(1.0, max(0.0, 1 - args[0]))
    return args[0] if args else None


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("u", [0.1, 0.9])
def test_arguments_are_timms(name: str, u: float) -> None:
    count = len(MAGNITUDES)
    level = np.array(MAGNITUDES) / 10
    ops, args = operations([name], np.zeros(count, dtype=np.int64), level, np.full(count, u))
    expected = [by_timm(name, magnitude, u) for magnitude in MAGNITUDES]
    assert set(ops) == {LEVELS[name][0]}
    if expected[0] is None:
        assert not args.any()
    elif LEVELS[name][0] == Op.POSTERIZE:  # more than 8 bits act like 8, fewer than 0 like 0
        assert args.tolist() == np.clip(np.array(expected, dtype=float), 0, 8).tolist()
    else:
        assert args.tolist() == pytest.approx(expected, rel=1e-12)


def test_signs_go_both_ways() -> None:
    signed = {name for name in LEVELS if by_timm(name, 5, 0.1) != by_timm(name, 5, 0.9)}
    for name in LEVELS:
        _, (low, high) = operations([name], np.zeros(2, dtype=np.int64), np.full(2, 0.5), np.array([0.1, 0.9]))
        assert (low != high) == (name in signed), name
    assert {"Rotate", "ShearX", "TranslateYRel", "ColorIncreasing", "GaussianBlurRand"} <= signed


def test_choices_have_their_own_arguments() -> None:
    names = ["Invert", "Rotate", "SolarizeAdd"]
    chosen = np.array([[0, 1], [2, 1]])
    ops, args = operations(names, chosen, np.array([[0.9, 0.5], [1.0, 0.1]]), np.full((2, 2), 0.7))
    assert ops.tolist() == [[Op.INVERT, Op.ROTATE], [Op.SOLARIZE_ADD, Op.ROTATE]]
    assert args == pytest.approx(np.array([[0, 15], [110, 3]]))


def test_pillow_knows_no_more_than_eight_bits() -> None:
    image = Image.linear_gradient("L").convert("RGB")
    assert timm.posterize(image, 9) is image
    assert timm.posterize(image, -2).getextrema() == ((0, 0),) * 3
