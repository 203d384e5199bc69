"""Operations on the pixel values of batches give Pillow's pixels."""

import pytest
import torch
from PIL import ImageEnhance, ImageFilter, ImageOps
from torch import Tensor

from data.augment import image_ops as ops
from tests import pictures as shown
from tests.pictures import as_batch, difference

device, images = shown.device, shown.images
ROUNDING = 0.01  # mean difference from the few values where float32 rounds a sum past an integer


def every(value: float, images: Tensor) -> Tensor:
    return torch.full((len(images),), value, dtype=torch.float64, device=images.device)


@pytest.mark.parametrize(
    ("ours", "pillows"),
    [
        (ops.invert, ImageOps.invert),
        (ops.autocontrast, ImageOps.autocontrast),
        (ops.equalize, ImageOps.equalize),
    ],
)
def test_operations_without_an_argument(images, device, ours, pillows) -> None:
    assert difference(ours(as_batch(images, device)), [pillows(image) for image in images]).max() == 0


@pytest.mark.parametrize("value", [0, 1, 26, 128, 200, 255, 256])
def test_solarize(images, device, value) -> None:
    batch = as_batch(images, device)
    assert (
        difference(ops.solarize(batch, every(value, batch)), [ImageOps.solarize(i, value) for i in images]).max() == 0
    )


@pytest.mark.parametrize("value", [0, 1, 99, 110, 128])
def test_solarize_add(images, device, value) -> None:
    batch = as_batch(images, device)
    expected = [i.point([min(255, v + value) if v < 128 else v for v in range(256)] * 3) for i in images]
    assert difference(ops.solarize_add(batch, every(value, batch)), expected).max() == 0


@pytest.mark.parametrize("bits", range(9))
def test_posterize(images, device, bits) -> None:
    batch = as_batch(images, device)
    expected = [i.point(lambda value: value & ~(2 ** (8 - bits) - 1)) for i in images]
    assert difference(ops.posterize(batch, every(bits, batch)), expected).max() == 0


@pytest.mark.parametrize("factor", [0.0, 0.1, 0.19, 0.5, 0.95, 1.0, 1.36, 1.81, 1.99])
@pytest.mark.parametrize(
    ("ours", "pillows"),
    [
        (ops.brightness, ImageEnhance.Brightness),
        (ops.contrast, ImageEnhance.Contrast),
        (ops.color, ImageEnhance.Color),
        (ops.sharpness, ImageEnhance.Sharpness),
    ],
)
def test_enhancements(images, device, factor, ours, pillows) -> None:
    batch = as_batch(images, device)
    expected = [pillows(image).enhance(factor) for image in images]
    assert difference(ours(batch, every(factor, batch)), expected).max() < ROUNDING


@pytest.mark.parametrize("radius", [0.1, 0.3, 0.7, 1.0, 1.23, 1.4142, 1.5, 1.9, 2.0])
def test_blur(images, device, radius) -> None:
    batch = as_batch(images, device)
    expected = [image.filter(ImageFilter.GaussianBlur(radius)) for image in images]
    # There are six passes, each with rounding: at radius 2 the difference is a tenth of 1/255.
    assert difference(ops.gaussian_blur(batch, every(radius, batch)), expected).max() < 0.15


@pytest.mark.parametrize("op", [ops.solarize, ops.posterize, ops.color, ops.sharpness, ops.gaussian_blur])
def test_each_image_has_an_argument_of_its_own(images, device, op) -> None:
    batch = as_batch(images, device)
    args = torch.arange(len(images), device=device, dtype=torch.float64) % 3
    alone = [op(batch[i : i + 1], args[i : i + 1]) for i in range(len(images))]
    assert torch.equal(op(batch, args), torch.cat(alone))


def test_images_may_be_wider_than_high(images, device) -> None:
    wide = [image.resize((80, 50)) for image in images]
    batch = as_batch(wide, device)
    for ours, expected in (
        (ops.equalize(batch), [ImageOps.equalize(image) for image in wide]),
        (ops.sharpness(batch, every(1.8, batch)), [ImageEnhance.Sharpness(image).enhance(1.8) for image in wide]),
        (ops.gaussian_blur(batch, every(1.4, batch)), [i.filter(ImageFilter.GaussianBlur(1.4)) for i in wide]),
    ):
        assert difference(ours, expected).max() < ROUNDING
