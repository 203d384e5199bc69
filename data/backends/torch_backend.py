"""The backend for machines without DALI: Pillow decodes and torchvision resizes, in DataLoader workers."""

import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from io import BytesIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from data.backends import unreadable
from data.backends.resizing import write_row
from data.backends.workers import IN_FLIGHT, SharedMemory, clean_start, has_one_ended, no_memory, start_worker
from data.concurrency.waiting import attentive, no_check
from data.config import DataConfig
from data.errors import DataError
from data.index.headers import BROKEN
from data.planning.crops import Crops
from data.sources import EncodedSource


class CropDataset(Dataset):
    """Returns the uint8 images of a request; runs in the workers."""

    def __init__(self, source: EncodedSource, side: int):
        self.source = source
        self.side = side

    def __getitem__(self, crops: Crops) -> Tensor | DataError:
        """``(n, 3, side, side)``. An error is returned, not raised, so that it reaches the main process as one line."""
        out = torch.empty(len(crops), 3, self.side, self.side, dtype=torch.uint8)
        if get_worker_info() is not None:
            try:
                # Now, not when the batch is sent: a background thread sends it, and its error would be lost.
                out.share_memory_()
            except RuntimeError as error:
                return no_memory(error)
        try:
            for row in range(len(crops)):
                write_row(out, row, crops, self._pixels(crops, row))
        except BROKEN as error:
            return unreadable(self.source, crops, error)
        return out

    def _pixels(self, crops: Crops, row: int) -> NDArray[np.uint8]:
        i, index = int(crops.index[row]), self.source.index
        top, left, height, width = crops.box[row].tolist()
        with Image.open(BytesIO(self.source.read(i))) as file:
            if file.size != (index.widths[i], index.heights[i]):
                raise OSError("size differs from the index")
            return np.array(file.convert("RGB").crop((left, top, left + width, top + height)))


class TorchBackend:
    """Makes batches with Pillow and torchvision in worker processes.

    Args:
        source: the images.
        cfg: the crop size.
        device: where the model is; batches for a GPU are in pinned memory.
        workers: number of worker processes; 0: this process does the work.
        max_batch: number of images in the largest request.
        processes: number of processes of this run on this machine.

    Raises:
        DataError: if there is too little shared memory.
    """

    def __init__(
        self,
        source: EncodedSource,
        cfg: DataConfig,
        device: torch.device,
        workers: int,
        max_batch: int,
        processes: int = 1,
    ):
        self.dataset = CropDataset(source, cfg.crop)
        self.workers = workers
        self.pin_memory = device.type == "cuda"
        if workers:
            self.context = clean_start(["timm.data.mixup", "torchvision.transforms.v2.functional", __name__])
            self.shared = SharedMemory(workers, min(max_batch, len(source)) * 3 * cfg.crop**2, processes)

    def batches(
        self, requests: Iterator[Crops], look: Callable[[], object] = no_check
    ) -> Generator[Tensor, None, None]:
        """See :class:`data.backends.Backend`."""
        try:
            with warnings.catch_warnings():  # torch warns at every epoch if there are more workers than cores
                warnings.filterwarnings("ignore", message="This DataLoader will create")
                iterator = iter(self._loader(requests))
        except OSError as error:
            raise DataError(f"the data workers cannot be started ({error}): set max_workers lower, or to 0") from error
        with closing(attentive(self._received(iterator), look)) as stream:
            for images in stream:
                if isinstance(images, DataError):
                    raise images
                yield images

    def _loader(self, requests: Iterator[Crops]) -> DataLoader:
        return DataLoader(
            self.dataset,
            sampler=requests,
            batch_size=None,
            num_workers=self.workers,
            pin_memory=self.pin_memory,
            prefetch_factor=IN_FLIGHT if self.workers else None,
            # The default would draw the workers' seeds from torch's global generator, which belongs to the model.
            generator=torch.Generator().manual_seed(0),
            worker_init_fn=start_worker,
            multiprocessing_context=self.context if self.workers else None,
        )

    def _received(self, iterator: Iterator) -> Generator[Tensor | DataError, None, None]:
        """What the workers send."""
        try:
            yield from iterator
        except (RuntimeError, OSError, EOFError) as error:  # the last two if a worker dies while it sends a batch
            if "Too many open files" in str(error):
                raise DataError(
                    "this process has as many open files as the system allows (`ulimit -Hn`): ask for a higher limit, "
                    "or lower max_workers"
                ) from error
            if not self.workers or not has_one_ended(iterator._workers):  # type: ignore[attr-defined]
                raise
            raise DataError(
                "a data worker was killed, perhaps because memory ran out: lower max_workers, and run the same "
                "command again to continue"
            ) from error
        finally:
            # Now, not at garbage collection: that may come when Python exits, which is too late.
            if self.workers:
                iterator._shutdown_workers()  # type: ignore[attr-defined]
