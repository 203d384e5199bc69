"""The DALI backend, for training and evaluation. The plan gives it the crops.

With a GPU, DALI decodes JPEGs (``mixed``) and resizes them there. With a CPU, DALI decodes only the crop, and
torchvision resizes it in a seventh of the time that DALI takes on a CPU. Pillow decodes JPEGs that store CMYK
or RGB: DALI treats every CMYK image like Adobe's, whose colours are inverted, and on a GPU it takes RGB for YCbCr.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import fields
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from nvidia.dali import Pipeline
from torch import Tensor

from data.backends import unreadable
from data.backends.dali_errors import gpu_failure
from data.backends.dali_pipelines import Feed, cpu_pipeline, gpu_pipeline
from data.backends.encoded import Encoded, encoded_images, has_paths
from data.backends.resizing import in_threads
from data.concurrency.waiting import attentive, no_check
from data.config import DataConfig
from data.planning.crops import Crops
from data.sources import EncodedSource

PREFETCH = 3  # batches decoded ahead


class DaliBackend:
    """Makes batches with DALI.

    Args:
        source: the images.
        cfg: the crop size.
        device: a GPU to decode on, or the CPU.
        workers: number of threads.
        max_batch: number of images in the largest request.
    """

    def __init__(self, source: EncodedSource, cfg: DataConfig, device: torch.device, workers: int, max_batch: int):
        self.source = source
        self.cfg = cfg
        self.device = device
        self.workers = max(1, workers)
        self.max_batch = max_batch

    def batches(
        self, requests: Iterator[Crops], look: Callable[[], object] = no_check
    ) -> Generator[Tensor, None, None]:
        """See :class:`data.backends.Backend`."""
        with closing(attentive(self._decoded(requests), look, ahead=1)) as decoded:
            if self.device.type == "cuda":
                # No copy is needed: the dynamic executor does not reuse a buffer while something refers to it. The
                # current stream waits for DALI's work on the batch (the DLPack protocol); the host does not.
                on_device = (torch.from_dlpack(batch.as_tensor()) for _, batch in decoded)
                yield from _held_while_used(on_device, torch.cuda.current_stream(self.device))
            else:
                yield from in_threads(decoded, self.cfg.crop, self.workers)

    def _decoded(self, requests: Iterator[Crops]) -> Generator[tuple[Crops, Any], None, None]:
        """Each request with the pipeline's output for it, a DALI ``TensorList``."""
        with (
            TemporaryDirectory(prefix="coldstart-") as folder,
            closing(encoded_images(self.source, requests, Path(folder))) as images,
        ):
            yield from self._run(images)

    def _run(self, images: Iterator[tuple[Crops, Encoded]]) -> Generator[tuple[Crops, Any], None, None]:
        ahead: list[Crops] = []
        index = self.source.index

        def feed() -> tuple[Encoded, Crops]:
            crops, encoded = next(images)
            ahead.append(crops)
            return encoded, crops

        pipeline = self._pipeline(feed)
        stream = _waiting_stream(self.device) if self.device.type == "cuda" else None
        try:
            pipeline.build()
        except RuntimeError as error:
            if failure := gpu_failure(error):
                raise failure from error
            raise
        while True:
            try:
                made, shapes = pipeline.run(stream)
            except StopIteration:
                return
            except RuntimeError as error:
                raise gpu_failure(error) or unreadable(self.source, _merge(ahead), error) from error
            crops = ahead.pop(0)
            sizes = np.stack([index.heights[crops.index], index.widths[crops.index]], axis=1)
            if not np.array_equal(shapes.as_array()[:, :2], sizes):
                raise unreadable(self.source, crops, ValueError("sizes differ from the index"))
            yield crops, made

    def _pipeline(self, feed: Feed) -> Pipeline:
        common = {
            "batch_size": self.max_batch,
            "num_threads": self.workers,
            "prefetch_queue_depth": PREFETCH,
            "exec_dynamic": True,
        }
        from_paths = has_paths(self.source)
        if self.device.type == "cuda":
            on = self.device.index or 0
            return gpu_pipeline(feed, from_paths, self.cfg.crop, self.cfg.hw_decoder_load, device_id=on, **common)
        return cpu_pipeline(feed, from_paths, device_id=None, **common)


@cache  # torch has only 32 streams for each GPU: a new one each time would soon be one that other work uses
def _waiting_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream that waits for DALI. Without one, the host would wait for the GPU. DALI has streams of its own."""
    return torch.cuda.Stream(device)


def _held_while_used(batches: Iterator[Tensor], stream: torch.cuda.Stream) -> Generator[Tensor, None, None]:
    """Keep a reference to each batch until the GPU has done the work that reads it.

    DALI reuses a buffer as soon as nothing refers to it, and does not know of work in the GPU's queue. When the next
    batch is taken, an event is put into the queue. The GPU has done the last batch's work when it reaches the event.

    Args:
        batches: the batches.
        stream: the queue of the work that reads them.
    """
    held: deque[tuple[Tensor, torch.cuda.Event]] = deque()
    try:
        for batch in batches:
            yield batch
            held.append((batch, stream.record_event()))
            while held and held[0][1].query():
                held.popleft()
    finally:
        stream.synchronize()  # the last batches may still be in use


def _merge(requests: list[Crops]) -> Crops:
    """Several requests as one: with prefetching, any of them may be the one that failed."""
    return Crops(*(np.concatenate([getattr(crops, field.name) for crops in requests]) for field in fields(Crops)))
