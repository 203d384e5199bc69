"""Carries out drawn operations on a uint8 batch, on CPU and GPU; the host does not wait for the GPU."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from data.augment import image_ops, warps
from data.augment.levels import Op
from data.augment.policies import AutoDraws
from data.threads import in_parallel
from data.transfer import send

PLAIN: dict[Op, Callable[[Tensor], Tensor]] = {
    Op.AUTOCONTRAST: image_ops.autocontrast,
    Op.EQUALIZE: image_ops.equalize,
    Op.INVERT: image_ops.invert,
}
GRADED: dict[Op, Callable[[Tensor, Tensor], Tensor]] = {
    Op.POSTERIZE: image_ops.posterize,
    Op.SOLARIZE: image_ops.solarize,
    Op.SOLARIZE_ADD: image_ops.solarize_add,
    Op.COLOR: image_ops.color,
    Op.CONTRAST: image_ops.contrast,
    Op.BRIGHTNESS: image_ops.brightness,
    Op.SHARPNESS: image_ops.sharpness,
    Op.BLUR: image_ops.gaussian_blur,
}
MOVING: dict[Op, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    Op.ROTATE: warps.rotate,
    Op.SHEAR_X: warps.shear_x,
    Op.SHEAR_Y: warps.shear_y,
    Op.TRANSLATE_X: warps.translate_x,
    Op.TRANSLATE_Y: warps.translate_y,
}
# Images at a time: on a CPU as many as its caches hold, on a GPU as many as fit in memory beside a model.
AT_ONCE = {"cpu": 1, "cuda": 32}


def carry_out(images: Tensor, draws: AutoDraws, cubic: NDArray[np.bool_] | None, fill: Tensor) -> Tensor:
    """The images after the drawn operations.

    In each layer the batch is sorted by operation, so the images of one operation are contiguous. Two copies bring
    everything that the device needs of the draws, and the host does not wait for them.

    Args:
        images: uint8 ``(n, 3, height, width)``; not changed.
        draws: the operations on these images.
        cubic: whether rotations, shears and translations interpolate bicubically, else bilinearly, ``(n, layers)``;
            ``None``: all bicubically.
        fill: colour of pixels that come from outside the image, uint8 ``(1, 3, 1, 1)``.
    """
    orders = np.argsort(draws.ops, axis=0, kind="stable").T  # for each layer: the image at each place
    places = np.argsort(orders, axis=1)  # and the place of each image
    moves = [orders[0], *(before[order] for before, order in zip(places[:-1], orders[1:], strict=True)), places[-1]]
    on_device = send(np.stack(moves), images.device)
    numbers = np.stack([draws.args.T, np.ones(orders.shape) if cubic is None else cubic.T])
    args, cubics = send(np.take_along_axis(numbers, orders[None], axis=2), images.device)
    for layer, order in enumerate(orders):
        images = images.index_select(0, on_device[layer])
        _operate_on(images, draws.ops[order, layer], args[layer], cubics[layer], fill)
    return images.index_select(0, on_device[-1])


def _operate_on(images: Tensor, ops: NDArray[np.int8], args: Tensor, cubic: Tensor, fill: Tensor) -> None:
    """Apply the operations, which are sorted, to the images in place."""

    def operate(run: tuple[Op, slice]) -> None:
        op, rows = run
        images[rows] = _operate(op, images[rows], args[rows], cubic[rows], fill)

    runs = _runs(ops, AT_ONCE[images.device.type])
    if images.device.type == "cpu":
        in_parallel(operate, runs)
    else:
        for run in runs:
            operate(run)


def _runs(ops: NDArray[np.int8], at_once: int) -> list[tuple[Op, slice]]:
    """The rows of each operation in a sorted array, at most ``at_once`` at a time, without ``Op.NONE``."""
    runs = []
    for op in np.unique(ops):
        first, last = np.searchsorted(ops, [op, op + 1])
        if op != Op.NONE:
            runs += [(Op(op), slice(start, min(start + at_once, last))) for start in range(first, last, at_once)]
    return runs


def _operate(op: Op, images: Tensor, args: Tensor, cubic: Tensor, fill: Tensor) -> Tensor:
    if op in PLAIN:
        return PLAIN[op](images)
    if op in GRADED:
        return GRADED[op](images, args)
    return MOVING[op](images, args, cubic, fill)
