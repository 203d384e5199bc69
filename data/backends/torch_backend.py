"""The backend for machines without DALI: Pillow decodes and torchvision resizes, in DataLoader workers."""

import atexit
import multiprocessing
import signal
from collections.abc import Generator, Iterator
from io import BytesIO
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from data.backends import unreadable
from data.backends.resizing import write_row
from data.config import DataConfig
from data.crops import Crops
from data.errors import DataError
from data.index import ImageIndex
from data.index.headers import BROKEN


class CropDataset(Dataset):
    """Answers a request for a batch with its uint8 images; runs in the workers."""

    def __init__(self, index: ImageIndex, side: int):
        self.index = index
        self.side = side

    def __getitem__(self, crops: Crops) -> Tensor | DataError:
        """``(n, 3, side, side)``; an error is returned, not raised, to cross the process border in one line."""
        out = torch.empty(len(crops), 3, self.side, self.side, dtype=torch.uint8)
        try:
            for row in range(len(crops)):
                write_row(out, row, crops, self._pixels(crops, row))
        except BROKEN as error:
            return unreadable(self.index, crops, error)
        return out

    def _pixels(self, crops: Crops, row: int) -> NDArray[np.uint8]:
        i = int(crops.index[row])
        top, left, height, width = crops.box[row].tolist()
        with Image.open(BytesIO(self.index.read(i))) as file:
            if file.size != (self.index.widths[i], self.index.heights[i]):
                raise OSError("size differs from the index")
            return np.array(file.convert("RGB").crop((left, top, left + width, top + height)))


class RequestSampler(Sampler[Crops]):
    """Hands requests to the workers as they are asked for."""

    def __init__(self, requests: Iterator[Crops]):
        self.requests = requests

    def __iter__(self) -> Iterator[Crops]:
        return self.requests


# A terminal and SLURM signal whole process groups; workers go on until the run has saved and ends them.
OUTLIVED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def _outlive_signals(worker: int) -> None:
    for number in OUTLIVED:
        signal.signal(number, signal.SIG_IGN)


@atexit.register
def _end_workers() -> None:
    """End workers that are still there, whose parent would wait for them for ever: they outlive a SIGTERM."""
    for process in multiprocessing.active_children():
        process.kill()


def _clean_start() -> BaseContext:
    """How workers start: as copies of a process that has imported what they need and never did anything else.

    A copy of this process would now and then hang, for its threads (CUDA's, DALI's, a logger's) are not copied, and
    the locks they hold at that moment are.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["timm.data.mixup", "torchvision.transforms.v2.functional", __name__])
    # What is blocked here stays blocked there; a signal for this process itself arrives a moment later.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, OUTLIVED)
    try:
        resource_tracker.ensure_running()  # else the next line but one would start it, which lets signals in again
        signal.pthread_sigmask(signal.SIG_BLOCK, OUTLIVED)
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


class TorchBackend:
    """Makes batches with Pillow and torchvision in worker processes.

    Args:
        index: the images.
        cfg: the crop size.
        device: where the model is; batches for a GPU lie in pinned memory.
        workers: worker processes; 0 works in this process.
    """

    def __init__(self, index: ImageIndex, cfg: DataConfig, device: torch.device, workers: int):
        self.dataset = CropDataset(index, cfg.crop)
        self.workers = workers
        self.pin_memory = device.type == "cuda"
        self.context = _clean_start() if workers else None

    def batches(self, requests: Iterator[Crops]) -> Generator[Tensor, None, None]:
        """See :class:`data.backends.Backend`."""
        loader = DataLoader(
            self.dataset,
            sampler=RequestSampler(requests),
            batch_size=None,
            num_workers=self.workers,
            pin_memory=self.pin_memory,
            # Its default seeds the workers from torch's global generator, which is the model's, not ours.
            generator=torch.Generator().manual_seed(0),
            worker_init_fn=_outlive_signals,
            multiprocessing_context=self.context,
        )
        iterator = iter(loader)
        try:
            for images in iterator:
                if isinstance(images, DataError):
                    raise images
                yield images
        finally:
            # Now, and not whenever garbage is collected: when Python exits it is too late for that.
            if self.workers:
                iterator._shutdown_workers()  # type: ignore[attr-defined]
