"""Pillow's image operations on uint8 batches, each image with an argument of its own; on CPU and GPU, without waiting.

Images are ``(n, 3, height, width)`` uint8. The arithmetic follows Pillow's, its truncations included: tables agree to the
last bit, blends and movements but for a few pixels that rounding takes across one. Sources: ImageOps, ImageEnhance, and
``Blend.c``, ``Filter.c``, ``Geometry.c`` and ``Convert.c`` of Pillow 12.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

GREY = (19595, 38470, 7471)  # weights of red, green and blue, in 65536ths
SMOOTH = (1, 1, 1, 1, 5, 1, 1, 1, 1)  # ImageFilter.SMOOTH, over 13

# --- by tables ------------------------------------------------------------------------------------------------------


def look_up(images: Tensor, tables: Tensor) -> Tensor:
    """Replace every value by its entry in a table of its image, ``(n, 256)``, or channel, ``(n, 3, 256)``; uint8."""
    n, channels = images.shape[:2]
    tables = tables.unsqueeze(1).expand(n, channels, 256) if tables.ndim == 2 else tables
    first = torch.arange(n * channels, device=images.device, dtype=torch.int32).view(n, channels, 1, 1) * 256
    return tables.reshape(-1).index_select(0, (images.int() + first).flatten()).view_as(images)


def _values(device: torch.device) -> Tensor:
    return torch.arange(256, device=device)


def invert_table(count: int, device: torch.device) -> Tensor:
    """``255 - v``: ``(count, 256)`` uint8."""
    return (255 - _values(device)).byte().expand(count, 256)


def solarize_table(thresholds: Tensor) -> Tensor:
    """Invert all values from a threshold on; thresholds ``(n,)``, 256 for none."""
    values = _values(thresholds.device)
    return torch.where(values < thresholds.unsqueeze(1), values, 255 - values).byte()


def solarize_add_table(added: Tensor) -> Tensor:
    """Add to all values below 128, up to 255; added ``(n,)``."""
    values = _values(added.device)
    return torch.where(values < 128, (values + added.unsqueeze(1)).clamp(max=255), values).byte()


def posterize_table(bits: Tensor) -> Tensor:
    """Keep the highest bits; bits ``(n,)`` from 0 to 8."""
    step = 2 ** (8 - bits.unsqueeze(1))
    return (_values(bits.device) // step * step).byte()


def brightness_table(factors: Tensor) -> Tensor:
    """Blend with black: 0 gives black, 1 the image."""
    return _blend(torch.zeros((), device=factors.device), _values(factors.device), factors.unsqueeze(1))


def contrast_table(factors: Tensor, images: Tensor) -> Tensor:
    """Blend with the mean grey of the image, rounded: 0 gives plain grey, 1 the image."""
    mean = (grey(images).flatten(1).double().mean(dim=1) + 0.5).floor()
    return _blend(mean.unsqueeze(1), _values(factors.device), factors.unsqueeze(1))


def autocontrast_table(images: Tensor) -> Tensor:
    """Stretch the values of each channel over all of 0 … 255: ``(n, 3, 256)``."""
    flat = images.flatten(2)
    low, high = flat.amin(dim=2, keepdim=True).double(), flat.amax(dim=2, keepdim=True).double()
    scale = torch.full_like(low, 255) / (high - low)  # a plain 255 / tensor would be rounded twice
    stretched = (_values(images.device) * scale + -low * scale).clamp(0, 255)
    return torch.where(high > low, stretched, _values(images.device).double()).byte()


def equalize_table(images: Tensor) -> Tensor:
    """Spread the values of each channel so that each is equally frequent: ``(n, 3, 256)``."""
    counts = _histograms(images)
    last = counts.gather(2, images.flatten(2).amax(dim=2, keepdim=True).long())  # the brightest value's
    step = (counts.sum(dim=2, keepdim=True) - last) // 255
    below = counts.cumsum(dim=2) - counts
    spread = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step > 0, spread, _values(images.device)).byte()


def _histograms(images: Tensor) -> Tensor:
    """How often each value occurs in each channel: ``(n, 3, 256)`` int64."""
    flat = images.flatten(2)
    counts = torch.zeros(*flat.shape[:2], 256, dtype=torch.int64, device=images.device)
    return counts.scatter_add_(2, flat.long(), torch.ones_like(flat, dtype=torch.int64))


# --- by blending ----------------------------------------------------------------------------------------------------


def grey(images: Tensor) -> Tensor:
    """Pillow's conversion to grey: ``(n, 1, height, width)`` uint8."""
    red, green, blue = (images[:, i : i + 1].int() * GREY[i] for i in range(3))
    return ((red + green + blue + 0x8000) >> 16).byte()


def color(images: Tensor, factors: Tensor) -> Tensor:
    """Blend with grey: 0 gives grey, 1 the image; factors ``(n,)``."""
    return _blend(grey(images), images, factors.view(-1, 1, 1, 1))


def sharpness(images: Tensor, factors: Tensor) -> Tensor:
    """Blend with the smoothed image: 0 gives the smooth one, 1 the image, 2 a sharp one; factors ``(n,)``."""
    kernel = torch.tensor(SMOOTH, dtype=torch.float32, device=images.device).view(1, 1, 3, 3) / 13
    n, channels, height, width = images.shape
    smooth = F.conv2d(images.view(-1, 1, height, width).float(), kernel).view(n, channels, height - 2, width - 2)
    blurred = images.float()
    blurred[:, :, 1:-1, 1:-1] = (smooth + 0.5).floor().clamp(0, 255)  # pixels of the border stay
    return _blend(blurred, images, factors.view(-1, 1, 1, 1))


def _blend(first: Tensor, second: Tensor, factors: Tensor) -> Tensor:
    """``first + factor · (second - first)``, cut off to uint8."""
    return torch.lerp(first.float(), second.float(), factors.float()).clamp(0, 255).byte()


# --- by moving pixels -----------------------------------------------------------------------------------------------


def rotation(degrees: Tensor, height: int, width: int) -> Tensor:
    """The affine maps of counter-clockwise rotations around the centre: ``(n, 6)`` float64, from output to input."""
    angle = -degrees.double() * (math.pi / 180)
    cos, sin = angle.cos(), angle.sin()
    x, y = width / 2, height / 2
    return torch.stack([cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y], dim=1)


def shear_x(factors: Tensor) -> Tensor:
    """Affine maps that move rows by ``factor`` pixels for each row."""
    return _maps(factors, 1)


def shear_y(factors: Tensor) -> Tensor:
    """Affine maps that move columns by ``factor`` pixels for each column."""
    return _maps(factors, 3)


def translation_x(pixels: Tensor) -> Tensor:
    """Affine maps that move the image to the left."""
    return _maps(pixels, 2)


def translation_y(pixels: Tensor) -> Tensor:
    """Affine maps that move the image up."""
    return _maps(pixels, 5)


def _maps(values: Tensor, place: int) -> Tensor:
    maps = torch.tensor([1.0, 0, 0, 0, 1, 0], dtype=torch.float64, device=values.device).repeat(len(values), 1)
    maps[:, place] = values.double()
    return maps


def affine(images: Tensor, maps: Tensor, fill: Tensor, interpolation: str) -> Tensor:
    """``Image.transform(size, AFFINE, map, interpolation, fillcolor=fill)``.

    Args:
        images: ``(n, 3, height, width)``.
        maps: ``(n, 6)`` float64: where pixel (x, y) of the output comes from.
        fill: ``(3,)`` uint8, for what comes from outside.
        interpolation: bicubic (Pillow's transforms have a = -1) or bilinear.
    """
    n, channels, height, width = images.shape
    x_out = torch.arange(width, device=images.device, dtype=torch.float64) + 0.5
    y_out = torch.arange(height, device=images.device, dtype=torch.float64).unsqueeze(1) + 0.5
    a, b, c, d, e, f = maps.view(n, 6, 1, 1).unbind(1)
    x, y = a * x_out + b * y_out + c, d * x_out + e * y_out + f  # (n, height, width)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    between = _cubic if interpolation == "bicubic" else _linear
    taps = range(-1, 3) if interpolation == "bicubic" else range(2)
    left, x_share = _place(x)
    top, y_share = _place(y)
    pixels = images.flatten(2).float()

    def read(row: int, column: int) -> Tensor:
        place = (top + row).clamp(0, height - 1) * width + (left + column).clamp(0, width - 1)
        return pixels.gather(2, place.view(n, 1, -1).expand(n, channels, -1))

    lines = [between(x_share, *(read(row, column) for column in taps)) for row in taps]
    moved = between(y_share, *lines).view_as(images).clamp(0, 255).byte()
    return torch.where(inside.unsqueeze(1), moved, fill.view(1, -1, 1, 1))


def _place(where: Tensor) -> tuple[Tensor, Tensor]:
    """The last pixel whose centre is not beyond ``where``, and how far beyond that it lies: ``(n, 1, positions)``."""
    floor = (where - 0.5).floor()
    return floor.long(), (where - 0.5 - floor).float().flatten(1).unsqueeze(1)


# As differences, in Pillow's order: what is of one colour then stays so, to the last bit.
def _linear(d: Tensor, v1: Tensor, v2: Tensor) -> Tensor:
    return v1 + d * (v2 - v1)


def _cubic(d: Tensor, v1: Tensor, v2: Tensor, v3: Tensor, v4: Tensor) -> Tensor:
    return v2 + d * (v3 - v1 + d * (2 * (v1 - v2) + v3 - v4 + d * (v2 - v1 - v3 + v4)))
