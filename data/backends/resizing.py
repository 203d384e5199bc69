"""Makes batches on a CPU from decoded crops: resizes, cuts to the window, mirrors. The arithmetic is Pillow's."""

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from data.concurrency.threads import begun_ahead, single_torch_threads
from data.planning.crops import Crops

Decoded = tuple[Crops, Sequence[NDArray[np.uint8]]]  # a request, and the pixels in its boxes, (height, width, 3) each


def write_row(out: Tensor, row: int, crops: Crops, pixels: NDArray[np.uint8]) -> None:
    """Write a row of a batch ``(n, 3, side, side)`` from the pixels in its box, ``(height, width, 3)``."""
    side = out.shape[2]
    # A view (3, height, width) of (height, width, 3) in memory: torchvision resizes it without a copy.
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    interpolation = InterpolationMode.BICUBIC if crops.cubic[row] else InterpolationMode.BILINEAR
    image = F.resize(image, crops.size[row].tolist(), interpolation=interpolation, antialias=True)
    top, left = crops.window[row].tolist()
    if image.shape[1:] != (side, side):
        image = F.crop(image, top, left, side, side)
    out[row] = image.flip(-1) if crops.flip[row] else image


def in_threads(decoded: Iterator[Decoded], side: int, threads: int) -> Generator[Tensor, None, None]:
    """The batches of decoded requests. While one is used, the next one is made.

    Args:
        decoded: the requests in their order.
        side: side of the square images in pixels.
        threads: number of threads.
    """
    with single_torch_threads(threads) as pool:
        for out, parts in begun_ahead(_begun(pool, threads, side, *request) for request in decoded):
            for part in parts:
                part.result()
            yield out


def _begun(
    pool: ThreadPoolExecutor, parts: int, side: int, crops: Crops, images: Sequence[NDArray[np.uint8]]
) -> tuple[Tensor, list[Future[None]]]:
    """Begin to make a batch. It is ready when all of its parts are."""
    out = torch.empty(len(crops), 3, side, side, dtype=torch.uint8)

    @torch.inference_mode()  # evaluation runs in this mode, and threads do not inherit it
    def write(first: int) -> None:
        for row in range(first, len(crops), parts):
            write_row(out, row, crops, np.asarray(images[row]))

    return out, [pool.submit(write, part) for part in range(parts)]
