"""Rotations, shears and translations of batches give Pillow's pixels."""

import numpy as np
import pytest
from PIL import Image

from data.augment.levels import Op
from tests import pictures as shown
from tests.pictures import FILL, SIDE, as_batch, difference, operated

device, images = shown.device, shown.images
# Mean difference from the few values where a sum is rounded past an integer. It is largest for bilinear interpolation
# at simple fractions.
ROUNDING = 0.1


def moved_by_pillow(image: Image.Image, name: str, value: float, resample: Image.Resampling) -> Image.Image:
    if name == "rotate":
        return image.rotate(value, resample=resample, fillcolor=FILL)
    maps = {
        "shear_x": (1, value, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, value, 1, 0),
        "translate_x": (1, 0, value * image.width, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, value * image.height),
    }
    return image.transform(image.size, Image.Transform.AFFINE, maps[name], resample=resample, fillcolor=FILL)


@pytest.mark.parametrize("size", [(SIDE, SIDE), (80, 50), (28, 28)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("shear_x", -0.99, 0.99),
        ("shear_y", -0.99, 0.99),
        ("translate_x", -0.45, 0.45),
        ("translate_y", -0.45, 0.45),
        ("rotate", -137, 140),
    ],
)
def test_movements(images, device, size, interpolation, name, least, most) -> None:
    resized = [image.resize(size) for image in images]
    resample = Image.Resampling[interpolation.upper()]
    for shift in (0, 1):  # another amount for each image
        values = np.roll(np.linspace(least, most, len(images)), shift)
        expected = [moved_by_pillow(i, name, v, resample) for i, v in zip(resized, values.tolist(), strict=True)]
        made = operated(as_batch(resized, device), Op[name.upper()], values, interpolation == "bicubic")
        assert difference(made, expected).max() < ROUNDING


@pytest.mark.parametrize("name", ["shear_x", "shear_y", "translate_x", "translate_y", "rotate"])
@pytest.mark.parametrize("value", [0.0, 0.25, 1.5, -3.0, 90.0, 180.0])
def test_whole_pixels_quarter_turns_and_beyond_the_border(images, device, name, value) -> None:
    expected = [moved_by_pillow(image, name, value, Image.Resampling.BICUBIC) for image in images]
    assert difference(operated(as_batch(images, device), Op[name.upper()], value), expected).max() < ROUNDING


def test_each_image_has_an_interpolation_of_its_own(images, device) -> None:
    cubic = np.arange(len(images)) % 2
    resample = [Image.Resampling.BICUBIC if c else Image.Resampling.BILINEAR for c in cubic.tolist()]
    expected = [moved_by_pillow(image, "rotate", 12.3, r) for image, r in zip(images, resample, strict=True)]
    assert difference(operated(as_batch(images, device), Op.ROTATE, 12.3, cubic), expected).max() < ROUNDING
