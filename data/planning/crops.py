"""Boxes for crops and for random erasing, as arrays of numbers for a whole batch at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Range = Sequence[float]  # smallest and largest value
TRIES = 10  # attempts at a random box before giving up, as in torchvision and timm


@dataclass(frozen=True)
class Crops:
    """What a backend needs to make one uint8 batch; row i of each array belongs to image i.

    The decoded image is cut to ``box`` (top, left, height, width, in stored pixels), resized to ``size`` (height,
    width), cut to the square whose top-left corner is ``window`` (top, left), and mirrored if ``flip`` is true.
    Resizing is bicubic if ``cubic`` is true, else bilinear.
    """

    index: NDArray[np.int64]  # (n,) rows of the image index
    box: NDArray[np.int32]  # (n, 4)
    size: NDArray[np.int32]  # (n, 2)
    window: NDArray[np.int32]  # (n, 2)
    flip: NDArray[np.bool_]  # (n,)
    cubic: NDArray[np.bool_]  # (n,)

    def __len__(self) -> int:
        return len(self.index)


def _random_sides(u: NDArray, area: NDArray | int, scale: Range, ratio: Range) -> tuple[Integers, Integers]:
    """Draw two sides: their product is a uniform share of ``area``, and the first divided by the second log-uniform.

    Args:
        u: uniforms ``(4, n, TRIES)``, of which the first two are used.
        area: area of the image.
        scale: smallest and largest share of it.
        ratio: smallest and largest first side divided by the second.
    """
    product = area * (scale[0] + u[0] * (scale[1] - scale[0]))
    quotient = np.exp(np.log(ratio[0]) + u[1] * (np.log(ratio[1]) - np.log(ratio[0])))
    first, second = np.sqrt(product * quotient), np.sqrt(product / quotient)
    return np.rint(first).astype(np.int64), np.rint(second).astype(np.int64)


def _first_valid(valid: NDArray[np.bool_], u: NDArray, size: tuple[Any, Any], h: Integers, w: Integers) -> NDArray:
    """Return a box (top, left, height, width) for each row: its first valid try, or its first try if none is valid.

    Args:
        valid: which tries fit, ``(n, TRIES)``.
        u: uniforms ``(4, n, TRIES)``; the last two say where in the image the box is.
        size: height and width of the image.
        h: heights of the tries.
        w: widths of the tries.
    """
    top, left = np.floor(u[2] * (size[0] - h + 1)), np.floor(u[3] * (size[1] - w + 1))
    first = valid.argmax(axis=1)[:, None]
    return np.hstack([np.take_along_axis(tries, first, axis=1) for tries in (top, left, h, w)])


def random_resized_boxes(
    u: NDArray[np.float64],
    height: NDArray,
    width: NDArray,
    scale: Range,
    ratio: Range,
) -> NDArray[np.int32]:
    """Boxes (top, left, height, width) with the distribution of torchvision's and timm's RandomResizedCrop.

    Args:
        u: uniforms, ``(n, 4 * TRIES)``.
        height: heights of the images in pixels, ``(n,)``.
        width: widths of the images in pixels, ``(n,)``.
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest aspect ratio (width / height).
    """
    u = np.moveaxis(u.reshape(len(u), TRIES, 4), 2, 0)
    H, W = height[:, None].astype(np.int64), width[:, None].astype(np.int64)
    w, h = _random_sides(u, H * W, scale, ratio)
    valid = (w > 0) & (w <= W) & (h > 0) & (h <= H)
    boxes = _first_valid(valid, u, (H, W), h, w)
    return np.where(valid.any(axis=1, keepdims=True), boxes, _central_boxes(height, width, ratio)).astype(np.int32)


def uniform_height_boxes(
    u: NDArray[np.float64],
    height: NDArray,
    width: NDArray,
    scale: Range,
    ratio: Range,
) -> NDArray[np.int32]:
    """Boxes with the distribution of TensorFlow's ``sample_distorted_bounding_box`` without objects.

    The aspect ratio is uniform, and so is the height between the smallest and the largest that fit. So boxes are
    smaller than those of :func:`random_resized_boxes`, which also has the arguments. Where no try fits, the box is the
    whole image. TensorFlow tries 100 times and not 10, and leaves out the last place in each direction.
    """
    u = np.moveaxis(u.reshape(len(u), TRIES, 4), 2, 0)
    H, W = height[:, None].astype(np.int64), width[:, None].astype(np.int64)
    aspect, (least, most) = ratio[0] + u[0] * (ratio[1] - ratio[0]), (H * W * share for share in scale)
    high = np.minimum(np.minimum(np.rint(np.sqrt(most / aspect)), H), np.floor((W + 0.5) / aspect))
    low = np.minimum(np.rint(np.sqrt(least / aspect)), high)
    h = low + np.floor(u[1] * (high - low + 1))
    h += h * np.rint(h * aspect) < least  # rounding may have made it a row too small, or too large
    h -= h * np.rint(h * aspect) > most
    w = np.rint(h * aspect)
    valid = (least <= h * w) & (h * w <= most) & (h <= H) & (w <= W) & (w > 0)
    whole = np.stack([np.zeros_like(height), np.zeros_like(height), height, width], axis=1)
    boxes = _first_valid(valid, u, (H, W), h, w)
    return np.where(valid.any(axis=1, keepdims=True), boxes, whole).astype(np.int32)


BOXES = {"area": random_resized_boxes, "height": uniform_height_boxes}  # by what is uniform: augment.crop_by


def _central_boxes(height: NDArray, width: NDArray, ratio: Range) -> NDArray:
    """The largest central boxes whose aspect ratio is allowed."""
    H, W = height.astype(np.int64), width.astype(np.int64)
    h = np.where(W < ratio[0] * H, np.rint(W / ratio[0]), H).astype(np.int64)
    w = np.where(W > ratio[1] * H, np.rint(H * ratio[1]), W).astype(np.int64)
    return np.stack([(H - h) // 2, (W - w) // 2, h, w], axis=1)


def centre_crops(
    index: NDArray[np.int64],
    height: NDArray,
    width: NDArray,
    resize: int,
    crop: int,
    cubic: bool = True,
    squash: bool = False,
) -> Crops:
    """Evaluation crops: the shorter side is resized to ``resize``, then the central ``crop`` square is cut out.

    Sizes and corners are rounded as in torchvision. With ``squash``, both sides are resized to ``resize``; the aspect
    ratio is not kept.
    """
    H, W = height.astype(np.int64), width.astype(np.int64)
    shorter = np.minimum(H, W)
    size = np.stack([H * resize // shorter, W * resize // shorter], axis=1)
    if squash:
        size = np.full_like(size, resize)
    window = np.where(size < crop, -((crop - size) // 2), np.rint((size - crop) / 2))
    zeros = np.zeros_like(H)
    return Crops(
        index=index,
        box=np.stack([zeros, zeros, H, W], axis=1).astype(np.int32),
        size=size.astype(np.int32),
        window=window.astype(np.int32),
        flip=np.zeros(len(H), dtype=bool),
        cubic=np.full(len(H), cubic),
    )


def random_erase_boxes(
    u: NDArray[np.float64],
    probability: float,
    side: int,
    scale: Range = (0.02, 1 / 3),
    ratio: Range = (0.3, 1 / 0.3),
) -> NDArray[np.int32]:
    """Boxes (top, left, height, width) with the distribution of timm's RandomErasing with one box; height 0: none.

    Args:
        u: uniforms, ``(n, 1 + 4 * TRIES)``.
        probability: probability that an image is erased.
        side: side of the square images in pixels.
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest aspect ratio (height / width).
    """
    tries = np.moveaxis(u[:, 1:].reshape(len(u), TRIES, 4), 2, 0)
    h, w = _random_sides(tries, side * side, scale, ratio)
    valid = (h < side) & (w < side)
    boxes = _first_valid(valid, tries, (side, side), h, w)
    wanted = valid.any(axis=1) & (u[:, 0] < probability)
    return np.where(wanted[:, None], boxes, 0).astype(np.int32)
