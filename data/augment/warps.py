"""Pillow's affine transformations for uint8 batches; each image has its own operation and argument.

They run on CPU and GPU; the host does not wait for the GPU. A pixel comes from a place that is the sum of a number for
its column and a number for its row. The host computes these numbers, because each operation has its own formula. The
device samples the places of all operations together. Source: ``Geometry.c`` of Pillow 12.
"""

import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from data.augment.image_ops import truncate
from data.augment.layer import Layer
from data.augment.levels import Op
from data.transfer import send, send_together

# Pillow truncates. In an area of one colour its weighted sums are exact, but ours may be a little too small: without
# this guard they would be truncated to the next lower value.
GUARD = 1e-3


def warp(images: Tensor, layer: Layer) -> Tensor:
    """Shear, translate or rotate each image: uint8 ``(n, 3, height, width)`` to int16."""
    height, width = images.shape[2:]
    limits = np.array([width, height], dtype=np.float32).reshape(2, 1, 1, 1)
    centres = limits / 2 * (layer.ops == Op.ROTATE).reshape(-1, 1, 1)
    cubic = layer.cubic.astype(np.float32).reshape(-1, 1, 1)
    numbers = (*_places(layer, height, width), limits, limits - 1, centres, -cubic)
    p, q, size, last, centre, a = send_together(images.device, *numbers)

    # Along an axis in which no image moves, one of the four taps has all the weight.
    along_x, along_y = layer.ops[0] <= Op.ROTATE, layer.ops[-1] >= Op.ROTATE
    across, down = (range(4) if moves else range(1, 2) for moves in (along_x, along_y))
    place, whole = p[:2] + q[:2]
    # Where no image moves along y, this is the same number in all columns; where none moves along x, in all rows.
    beyond = p[2, ..., : width if along_y else 1] + q[2, ..., : height if along_x else 1, :]
    place += centre
    inside = (place >= 0) & (place < size)
    for rows in layer.rows(Op.ROTATE):
        from_first_centre = place[:, rows] - 0.5
        torch.floor(from_first_centre, out=whole[:, rows])
        torch.sub(from_first_centre, whole[:, rows], out=beyond[:, rows])
    by_column, by_row = _weights(beyond, a).unsqueeze(3).unbind(1)

    x, y = torch.minimum(whole.clamp_(min=-1), last).int()
    lines = _weighted(_taps(images, x, y, across, down), by_column[across.start :])
    moved = _weighted(lines, by_row[down.start :]).add_(GUARD).clamp_(0, 255)
    return truncate(torch.where(inside.all(dim=0).unsqueeze(1), moved, layer.fill))


def _places(layer: Layer, height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Where pixels come from: a number for each column, ``(3, 2, n, 1, width)``, and row, ``(3, 2, n, height, 1)``.

    The second axis is x and y. The first axis has three quantities, each the sum of a column's and a row's number:

    - the place in pixels;
    - the last pixel whose centre is not beyond the place;
    - the distance of the place from that centre.

    Shears and translations have all three, split in float64. Rotations only have the place, relative to the image's
    centre.
    """
    x, y, args = np.arange(width), np.arange(height), layer.args[:, None]
    exact = np.zeros((2, len(args), width + height))  # the places, from the centre of the first pixel
    by_column, by_row = exact[..., :width], exact[..., width:]
    by_column[0], by_row[1] = x, y
    for op, shifts, factor in (
        (Op.SHEAR_X, by_row[0], y + 0.5),
        (Op.TRANSLATE_X, by_row[0], np.array(width)),
        (Op.SHEAR_Y, by_column[1], x + 0.5),
        (Op.TRANSLATE_Y, by_column[1], np.array(height)),
    ):
        for rows in layer.rows(op):
            shifts[rows] = args[rows] * factor
    whole = np.floor(exact)
    numbers = np.stack([exact, whole, exact - whole]).astype(np.float32)
    p, q = numbers[..., :width], numbers[..., width:]
    p[0, 0] += 0.5
    q[0, 1] += 0.5
    for rows in layer.rows(Op.ROTATE):
        angle = -args[rows] * (math.pi / 180)
        cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
        right, below = (x + 0.5 - width / 2).astype(np.float32), (y + 0.5 - height / 2).astype(np.float32)
        p[0, :, rows] = cos * right, -sin * right
        q[0, :, rows] = sin * below, cos * below
    return np.expand_dims(p, -2), np.expand_dims(q, -1)


def _taps(images: Tensor, x: Tensor, y: Tensor, across: range, down: range) -> Iterator[Tensor]:
    """The pixels at each distance in ``across`` and ``down`` from the pixel left of and above these whole places.

    Yields a tensor ``(len(down), n, channels, height, width)`` for each distance in ``across``.
    """
    # Pad with repeated borders and store all channels of all images in one flat row. Every other tap then has the same
    # distance from the first tap at all places.
    n, channels, height, width = images.shape
    high, wide = height + 4, width + 4
    row = F.pad(images.float(), (2, 2, 2, 2), mode="replicate").flatten()
    starts = np.arange(wide + 1, len(row), high * wide, dtype=np.int32).reshape(n, channels, 1, 1)
    starts_down = send(images.device, starts + np.array(down, dtype=np.int32).reshape(-1, 1, 1, 1, 1) * wide)
    first = torch.add(x, y, alpha=wide).unsqueeze(1) + starts_down
    for right in across:
        yield row[right:].index_select(0, first.flatten()).view(first.shape)


def _weighted(taps: Iterable[Tensor], weights: Tensor) -> Tensor:
    """The weighted sum. The taps are taken one at a time, so that the caches hold only few of them."""
    total: Tensor | None = None
    for tap, weight in zip(taps, weights, strict=False):
        total = tap * weight if total is None else total.addcmul_(tap, weight)
    assert total is not None
    return total


def _weights(beyond: Tensor, a: Tensor) -> Tensor:
    """Weights of the four pixels around places that are so far beyond the second one: float32 ``(4, …)``.

    Pillow's bicubic interpolation has a = -1. Bilinear interpolation is the same formula with a = 0: the outer two
    pixels get the weight 0.
    """
    before = 1 - beyond
    outer = a * beyond
    both = outer * before
    inner = 1 - both
    return torch.stack([both * before, before * inner, beyond * inner, outer * beyond * before])
