"""Carries out drawn operations on a uint8 batch, on CPU and GPU; the host does not wait for the GPU."""

from collections.abc import Callable
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from data.augment import image_ops, warps
from data.augment.layer import Layer
from data.augment.levels import Op
from data.augment.policies import AutoDraws
from data.concurrency.threads import in_parallel
from data.transfer import send

Function = Callable[[Tensor, Layer], Tensor]
# Each operation's function: from uint8 images to new values of any type. Operations with the same function are
# neighbours in Op. A GPU does them together, because it takes longer to start an operation than to do it.
FUNCTIONS: dict[Op, Function] = {
    **dict.fromkeys((Op.AUTOCONTRAST, Op.EQUALIZE, *image_ops.TABLES), image_ops.look_up),
    **dict.fromkeys((Op.COLOR, Op.CONTRAST, Op.SHARPNESS), image_ops.blend),
    **dict.fromkeys((Op.SHEAR_X, Op.TRANSLATE_X, Op.ROTATE, Op.SHEAR_Y, Op.TRANSLATE_Y), warps.warp),
    Op.BLUR: image_ops.gaussian_blur,
}
# Pixels at a time. On a CPU, its caches hold them: one image of 224 pixels, or 16 of 32. On a GPU, they fit in memory
# beside a model: 64 images of 224 pixels, for which rotations need 0.9 GB.
PIXELS_AT_ONCE = {"cpu": 2**14, "cuda": 64 * 224**2}


def carry_out(images: Tensor, draws: AutoDraws, cubic: NDArray[np.bool_] | None, fill: Tensor) -> Tensor:
    """The images after the drawn operations.

    In each layer the batch is sorted by operation, so the images of one function are contiguous.

    Args:
        images: uint8 ``(n, 3, height, width)``; not changed.
        draws: the operations on these images.
        cubic: whether rotations, shears and translations interpolate bicubically, else bilinearly, ``(n, layers)``;
            ``None``: all bicubically.
        fill: colour of pixels that come from outside the image, uint8 ``(1, 3, 1, 1)``.
    """
    # One gather for each layer puts the images from the order of the layer before into the order of this one.
    orders = np.argsort(draws.ops, axis=0, kind="stable").T  # for each layer: the image at each place
    places = np.argsort(orders, axis=1)  # and the place of each image
    moves = [orders[0], *(before[order] for before, order in zip(places[:-1], orders[1:], strict=True)), places[-1]]
    on_device = send(images.device, np.stack(moves))
    cubic = np.ones(draws.ops.shape, dtype=np.bool_) if cubic is None else cubic
    for layer, order in enumerate(orders):
        images = images.index_select(0, on_device[layer])
        rows = order, layer
        _operate_on(images, Layer(draws.ops[rows], draws.args[rows], cubic[rows], fill))
    return images.index_select(0, on_device[-1])


def _operate_on(images: Tensor, layer: Layer) -> None:
    """Apply the operations to the images in place."""

    def operate(run: tuple[Function, slice]) -> None:
        function, rows = run
        images[rows] = function(images[rows], layer[rows])

    at_once = max(1, PIXELS_AT_ONCE[images.device.type] // images[0, 0].numel())
    runs = _runs(layer.ops, at_once)
    if images.device.type == "cpu":
        in_parallel(operate, runs)
    else:
        for run in runs:
            operate(run)


def _runs(ops: NDArray[np.int8], at_once: int) -> list[tuple[Function, slice]]:
    """The rows of each function, at most ``at_once`` at a time, without those of ``Op.NONE``."""
    runs, last = [], 0
    for function, group in groupby(ops.tolist(), FUNCTIONS.get):
        first, last = last, last + len(list(group))
        if function is not None:
            runs += [(function, slice(start, min(start + at_once, last))) for start in range(first, last, at_once)]
    return runs
