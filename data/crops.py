"""Boxes for crops and for random erasing, as arrays of numbers for a whole batch at once."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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


def _log_uniform(u: NDArray, low: float, high: float) -> NDArray:
    return np.exp(np.log(low) + u * (np.log(high) - np.log(low)))


def _first(valid: NDArray[np.bool_], *choices: NDArray) -> tuple[NDArray, ...]:
    """The first valid one of the ``(n, tries)`` choices in each row, or the first one if none is valid."""
    rows = np.arange(len(valid))
    return tuple(choice[rows, valid.argmax(axis=1)] for choice in choices)


def random_resized_boxes(
    u: NDArray[np.float64],
    height: NDArray,
    width: NDArray,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> NDArray[np.int32]:
    """Boxes (top, left, height, width) with the distribution of torchvision's and timm's RandomResizedCrop.

    Args:
        u: uniforms, ``(n, 4 * TRIES)``.
        height: heights of the images in pixels, ``(n,)``.
        width: widths of the images in pixels, ``(n,)``.
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest aspect ratio (width / height).
    """
    u_area, u_ratio, u_top, u_left = np.moveaxis(u.reshape(len(u), TRIES, 4), 2, 0)
    H, W = height[:, None].astype(np.int64), width[:, None].astype(np.int64)
    area = H * W * (scale[0] + u_area * (scale[1] - scale[0]))
    aspect = _log_uniform(u_ratio, *ratio)
    w = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    h = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    valid = (w > 0) & (w <= W) & (h > 0) & (h <= H)
    top, left = np.floor(u_top * (H - h + 1)), np.floor(u_left * (W - w + 1))
    boxes = np.stack(_first(valid, top, left, h, w), axis=1)
    return np.where(valid.any(axis=1)[:, None], boxes, _central_boxes(height, width, ratio)).astype(np.int32)


def _central_boxes(height: NDArray, width: NDArray, ratio: tuple[float, float]) -> NDArray:
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
    area: tuple[float, float] = (0.02, 1 / 3),
    ratio: tuple[float, float] = (0.3, 1 / 0.3),
) -> NDArray[np.int32]:
    """Boxes (top, left, height, width) with the distribution of timm's RandomErasing with one box; height 0: none.

    Args:
        u: uniforms, ``(n, 1 + 4 * TRIES)``.
        probability: probability that an image is erased.
        side: side of the square images in pixels.
        area: smallest and largest share of the image's area.
        ratio: smallest and largest aspect ratio (height / width).
    """
    u_area, u_ratio, u_top, u_left = np.moveaxis(u[:, 1:].reshape(len(u), TRIES, 4), 2, 0)
    target = side * side * (area[0] + u_area * (area[1] - area[0]))
    aspect = _log_uniform(u_ratio, *ratio)
    h = np.rint(np.sqrt(target * aspect)).astype(np.int64)
    w = np.rint(np.sqrt(target / aspect)).astype(np.int64)
    valid = (h < side) & (w < side)
    top, left = np.floor(u_top * (side - h + 1)), np.floor(u_left * (side - w + 1))
    boxes = np.stack(_first(valid, top, left, h, w), axis=1)
    wanted = valid.any(axis=1) & (u[:, 0] < probability)
    return np.where(wanted[:, None], boxes, 0).astype(np.int32)
