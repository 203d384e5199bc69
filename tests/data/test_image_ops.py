"""Operations on the pixel values of batches give Pillow's pixels."""

import numpy as np
import pytest
import torch
from PIL import ImageEnhance, ImageFilter, ImageOps

from data.augment.levels import Op
from tests import pictures as shown
from tests.pictures import as_batch, difference, operated

device, images = shown.device, shown.images
ROUNDING = 0.01  # mean difference from the few values where float32 rounds a sum past an integer


@pytest.mark.parametrize(
    ("ours", "pillows"),
    [
        (Op.INVERT, ImageOps.invert),
        (Op.AUTOCONTRAST, ImageOps.autocontrast),
        (Op.EQUALIZE, ImageOps.equalize),
    ],
)
def test_operations_without_an_argument(images, device, ours, pillows) -> None:
    assert difference(operated(as_batch(images, device), ours), [pillows(image) for image in images]).max() == 0


@pytest.mark.parametrize("value", [0, 1, 26, 128, 200, 255, 256])
def test_solarize(images, device, value) -> None:
    batch = as_batch(images, device)
    expected = [ImageOps.solarize(image, value) for image in images]
    assert difference(operated(batch, Op.SOLARIZE, value), expected).max() == 0


@pytest.mark.parametrize("value", [0, 1, 99, 110, 128])
def test_solarize_add(images, device, value) -> None:
    batch = as_batch(images, device)
    expected = [i.point([min(255, v + value) if v < 128 else v for v in range(256)] * 3) for i in images]
    assert difference(operated(batch, Op.SOLARIZE_ADD, value), expected).max() == 0


@pytest.mark.parametrize("bits", range(9))
def test_posterize(images, device, bits) -> None:
    batch = as_batch(images, device)
    expected = [i.point(lambda value: value & ~(2 ** (8 - bits) - 1)) for i in images]
    assert difference(operated(batch, Op.POSTERIZE, bits), expected).max() == 0


@pytest.mark.parametrize("factor", [0.0, 0.1, 0.19, 0.5, 0.95, 1.0, 1.36, 1.81, 1.99])
@pytest.mark.parametrize(
    ("ours", "pillows"),
    [
        (Op.BRIGHTNESS, ImageEnhance.Brightness),
        (Op.CONTRAST, ImageEnhance.Contrast),
        (Op.COLOR, ImageEnhance.Color),
        (Op.SHARPNESS, ImageEnhance.Sharpness),
    ],
)
def test_enhancements(images, device, factor, ours, pillows) -> None:
    batch = as_batch(images, device)
    expected = [pillows(image).enhance(factor) for image in images]
    assert difference(operated(batch, ours, factor), expected).max() < ROUNDING


@pytest.mark.parametrize("radius", [0.1, 0.3, 0.7, 1.0, 1.23, 1.4142, 1.5, 1.9, 2.0])
def test_blur(images, device, radius) -> None:
    batch = as_batch(images, device)
    expected = [image.filter(ImageFilter.GaussianBlur(radius)) for image in images]
    # There are six passes, each with rounding: at radius 2 the difference is a tenth of 1/255.
    assert difference(operated(batch, Op.BLUR, radius), expected).max() < 0.15


@pytest.mark.parametrize("op", [Op.SOLARIZE, Op.POSTERIZE, Op.COLOR, Op.SHARPNESS, Op.BLUR])
def test_each_image_has_an_argument_of_its_own(images, device, op) -> None:
    batch = as_batch(images, device)
    args = np.arange(len(images)) % 3
    alone = [operated(batch[i : i + 1], op, args[i]) for i in range(len(images))]
    assert torch.equal(operated(batch, op, args), torch.cat(alone))


def test_images_may_be_wider_than_high(images, device) -> None:
    wide = [image.resize((80, 50)) for image in images]
    batch = as_batch(wide, device)
    for ours, expected in (
        (operated(batch, Op.EQUALIZE), [ImageOps.equalize(image) for image in wide]),
        (operated(batch, Op.SHARPNESS, 1.8), [ImageEnhance.Sharpness(image).enhance(1.8) for image in wide]),
        (operated(batch, Op.BLUR, 1.4), [i.filter(ImageFilter.GaussianBlur(1.4)) for i in wide]),
    ):
        assert difference(ours, expected).max() < ROUNDING
