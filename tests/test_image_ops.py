"""Operations on batches give Pillow's pixels."""

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from data import image_ops as ops

SIDE = 96
FILL = (124, 116, 104)


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """Photographs, a dark one, a pale one, one of a single colour, and noise."""
    photographs = [
        Image.fromarray(getattr(skimage.data, name)()) for name in ("astronaut", "chelsea", "coffee", "rocket")
    ]
    small = [photograph.resize((SIDE, SIDE)) for photograph in photographs]
    dark = small[0].point(lambda value: value // 4)
    pale = small[1].point(lambda value: 128 + value // 3)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
    return [*small, dark, pale, Image.new("RGB", (SIDE, SIDE), (90, 30, 200)), noise]


def batch(pictures: list[Image.Image]) -> Tensor:
    return torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in pictures])


def difference(made: Tensor, expected: list[Image.Image]) -> Tensor:
    """Mean absolute difference of each image, in steps of 1/255."""
    assert made.dtype == torch.uint8
    return (made.float() - batch(expected).float()).abs().mean(dim=(1, 2, 3))


def spread(low: float, high: float, count: int) -> Tensor:
    return torch.linspace(low, high, count, dtype=torch.float64)


def test_tables_without_an_argument(pictures):
    images = batch(pictures)
    for table, function in (
        (ops.invert_table(len(images), images.device), ImageOps.invert),
        (ops.autocontrast_table(images), ImageOps.autocontrast),
        (ops.equalize_table(images), ImageOps.equalize),
    ):
        assert difference(ops.look_up(images, table), [function(picture) for picture in pictures]).max() == 0


@pytest.mark.parametrize("value", [0, 1, 26, 128, 200, 255, 256])
def test_solarize(pictures, value):
    images = batch(pictures)
    table = ops.solarize_table(torch.full((len(images),), value))
    assert difference(ops.look_up(images, table), [ImageOps.solarize(p, value) for p in pictures]).max() == 0


@pytest.mark.parametrize("bits", range(9))
def test_posterize(pictures, bits):
    images = batch(pictures)
    expected = [p.point(lambda value: value & ~(2 ** (8 - bits) - 1)) for p in pictures]
    assert difference(ops.look_up(images, ops.posterize_table(torch.full((len(images),), bits))), expected).max() == 0


@pytest.mark.parametrize("factor", [0.1, 0.19, 0.5, 0.95, 1.0, 1.36, 1.81, 1.9])
def test_enhancements(pictures, factor):
    images = batch(pictures)
    factors = torch.full((len(images),), factor, dtype=torch.float64)
    for made, kind in (
        (ops.look_up(images, ops.brightness_table(factors)), ImageEnhance.Brightness),
        (ops.look_up(images, ops.contrast_table(factors, images)), ImageEnhance.Contrast),
        (ops.color(images, factors), ImageEnhance.Color),
        (ops.sharpness(images, factors), ImageEnhance.Sharpness),
    ):
        assert difference(made, [kind(p).enhance(factor) for p in pictures]).max() < 0.02, kind


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_movements(pictures, interpolation):
    images = batch(pictures)
    n = len(images)
    resample = Image.Resampling[interpolation.upper()]
    fill = torch.tensor(FILL, dtype=torch.uint8)

    def transformed(coefficients: Tensor) -> list[Image.Image]:
        return [
            p.transform(p.size, Image.Transform.AFFINE, tuple(row), resample=resample, fillcolor=FILL)
            for p, row in zip(pictures, coefficients.tolist(), strict=True)
        ]

    for maps in (
        ops.shear_x(spread(-0.3, 0.3, n)),
        ops.shear_y(spread(-0.3, 0.3, n)),
        ops.translation_x(spread(-0.437, 0.413, n) * SIDE),
        ops.translation_y(spread(-0.437, 0.413, n) * SIDE),
    ):
        assert difference(ops.affine(images, maps, fill, interpolation), transformed(maps)).max() < 0.02
    degrees = spread(-30, 30, n)
    expected = [p.rotate(d, resample=resample, fillcolor=FILL) for p, d in zip(pictures, degrees.tolist(), strict=True)]
    made = ops.affine(images, ops.rotation(degrees, SIDE, SIDE), fill, interpolation)
    assert difference(made, expected).max() < 0.02


def test_images_may_be_wider_than_high(pictures):
    wide = [picture.resize((80, 50)) for picture in pictures]
    images = batch(wide)
    maps = ops.rotation(spread(-30, 30, len(images)), 50, 80)
    expected = [
        p.rotate(d, Image.Resampling.BICUBIC, fillcolor=FILL)
        for p, d in zip(wide, spread(-30, 30, len(images)).tolist(), strict=True)
    ]
    made = ops.affine(images, maps, torch.tensor(FILL, dtype=torch.uint8), "bicubic")
    assert difference(made, expected).max() < 0.02
