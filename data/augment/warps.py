"""Pillow's affine transformations for uint8 batches; each image has its own argument.

They run on CPU and GPU; the host does not wait for the GPU. Images are ``(n, 3, height, width)``, arguments ``(n,)``
float64. ``cubic`` ``(n,)`` is 1 for bicubic interpolation (Pillow's transforms have a = -1) and 0 for bilinear.
``fill`` ``(1, 3, 1, 1)`` is the colour of pixels that come from outside the image. Source: ``Geometry.c`` of Pillow 12.
"""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from data.augment.image_ops import choose, column, to_uint8

TAPS = 4
# Pillow truncates. In an area of one colour its weighted sums are exact, but ours may be a little too small: without
# this guard they would be truncated to the next lower value.
GUARD = 1e-3


def shear_x(images: Tensor, factors: Tensor, cubic: Tensor, fill: Tensor) -> Tensor:
    """Move each row by ``factor`` pixels more than the row above."""
    return _shift(images, factors.view(-1, 1, 1, 1) * _centres(images, 2), 3, cubic, fill)


def shear_y(images: Tensor, factors: Tensor, cubic: Tensor, fill: Tensor) -> Tensor:
    """Move each column by ``factor`` pixels more than the column to its left."""
    return _shift(images, factors.view(-1, 1, 1, 1) * _centres(images, 3), 2, cubic, fill)


def translate_x(images: Tensor, shares: Tensor, cubic: Tensor, fill: Tensor) -> Tensor:
    """Move the image to the left, by a share of its width."""
    return _shift(images, shares.view(-1, 1, 1, 1) * images.shape[3], 3, cubic, fill)


def translate_y(images: Tensor, shares: Tensor, cubic: Tensor, fill: Tensor) -> Tensor:
    """Move the image up, by a share of its height."""
    return _shift(images, shares.view(-1, 1, 1, 1) * images.shape[2], 2, cubic, fill)


def _centres(images: Tensor, dim: int) -> Tensor:
    """Centres of the pixels along a dimension, float64, to broadcast over images."""
    shape = [1, 1, 1, 1]
    shape[dim] = -1
    return (torch.arange(images.shape[dim], device=images.device, dtype=torch.float64) + 0.5).view(shape)


def _shift(images: Tensor, shifts: Tensor, dim: int, cubic: Tensor, fill: Tensor) -> Tensor:
    """Shift whole rows (``dim`` 3) or columns (``dim`` 2), each by its number of pixels, float64.

    All pixels of a line have the same weights, and each tap is the line itself, moved by whole pixels.
    """
    size = images.shape[dim]
    whole = shifts.floor()
    weights = _weights(shifts - whole, cubic)
    shape = [1, 1, 1, 1]
    shape[dim] = -1
    taps = torch.arange(-1, size + TAPS - 2, device=images.device).view(shape)
    places = (taps + whole.long()).clamp_(0, size - 1)
    sizes = [*images.shape]
    sizes[dim] = size + TAPS - 1
    lines = images.gather(dim, places.expand(sizes)).float()
    moved = _weighted((lines.narrow(dim, tap, size) for tap in range(TAPS)), weights)
    where = _centres(images, dim).float() + shifts.float()
    return choose((where >= 0) & (where < size), _cut(moved), fill)


def rotate(images: Tensor, degrees: Tensor, cubic: Tensor, fill: Tensor) -> Tensor:
    """Rotate around the centre, counter-clockwise."""
    height, width = images.shape[2:]
    angle = -degrees.double().view(-1, 1, 1) * (math.pi / 180)
    cos, sin = angle.cos().float(), angle.sin().float()
    x = torch.arange(width, device=images.device) + (0.5 - width / 2)
    y = (torch.arange(height, device=images.device) + (0.5 - height / 2)).unsqueeze(1)
    from_x = cos * x + sin * y + width / 2
    from_y = -sin * x + cos * y + height / 2
    return _sample(images, from_x, from_y, cubic, fill)


def _sample(images: Tensor, x: Tensor, y: Tensor, cubic: Tensor, fill: Tensor) -> Tensor:
    """The images sampled at these places, ``(n, height, width)`` in pixels."""
    n, channels, height, width = images.shape
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    x, y = x - 0.5, y - 0.5
    left, top = x.floor(), y.floor()
    by_column = _weights((x - left).unsqueeze(1), cubic)
    by_row = _weights((y - top).unsqueeze(1), cubic)

    # Pad with repeated borders and store all channels of all images in one flat row. Every other tap then has the same
    # distance from the first tap at all places.
    high, wide = height + 4, width + 4
    row = F.pad(images.float(), (2, 2, 2, 2), mode="replicate").flatten()
    first = (top.int().clamp_(-1, height - 1) + 1) * wide + left.int().clamp_(-1, width - 1) + 1
    start = torch.arange(0, len(row), high * wide, device=images.device, dtype=torch.int32)
    first = (first.unsqueeze(1) + start.view(n, channels, 1, 1)).flatten()
    moved = torch.zeros(images.shape, device=images.device)
    for down in range(TAPS):
        taps = (row[down * wide + right :].index_select(0, first).view_as(images) for right in range(TAPS))
        moved.addcmul_(_weighted(taps, by_column), by_row[down])
    return choose(inside.unsqueeze(1), _cut(moved), fill)


def _weighted(taps: Iterable[Tensor], weights: list[Tensor]) -> Tensor:
    """The weighted sum. The taps are taken one at a time, so that the caches hold only few of them."""
    total: Tensor | None = None
    for tap, weight in zip(taps, weights, strict=True):
        total = tap * weight if total is None else total.addcmul_(tap, weight)
    assert total is not None
    return total


def _weights(d: Tensor, cubic: Tensor) -> list[Tensor]:
    """Weights of the four pixels around places that are ``d`` pixels beyond the second one, ``(n, 1, …, …)``; float32.

    Bilinear interpolation is the same formula with a = 0: the outer two pixels get the weight 0.
    """
    d = d.float()
    e, a = 1 - d, column(cubic, torch.float32)
    return [-a * d * e * e, e * (1 + a * d * e), d * (1 + a * d * e), -a * d * d * e]


def _cut(values: Tensor) -> Tensor:
    return to_uint8(values.add_(GUARD).clamp_(0, 255))
