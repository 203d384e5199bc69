"""The DALI backend: one pipeline for CPU and GPU, training and evaluation, fed with images and crops by the plan.

On a GPU JPEGs are decoded there (``mixed``); on a CPU the same pipeline runs without one. Settings that make its
pixels PIL's: no EXIF rotation, libjpeg's fancy upsampling, antialiased resizing. CMYK images are decoded by Pillow:
DALI takes all of them for Adobe's, whose colours are inverted.
"""

from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, pipeline_def, types
from torch import Tensor

from data.backends import unreadable
from data.backends.encoded import encoded_images
from data.config import DataConfig
from data.crops import Crops
from data.index import ImageIndex

PREFETCH = 2  # batches decoded ahead
CUBIC, LINEAR = (np.int32(kind) for kind in (types.INTERP_CUBIC, types.INTERP_LINEAR))


@pipeline_def(enable_conditionals=False)
def crop_pipeline(source, from_paths: bool, device: str, side: int, hw_decoder_load: float):
    """Images and crops to uint8 images in (channels, height, width), and the shapes of the files' images.

    An image comes as its path or as its file's content; DALI reads paths in its own threads.
    """
    image, start, extent, size, window, flip, interpolation = fn.external_source(
        source=source,
        num_outputs=7,
        batch=True,
        dtype=[types.UINT8, types.INT32, types.INT32, types.FLOAT, types.INT32, types.INT32, types.INT32],
    )
    encoded = fn.io.file.read(image) if from_paths else image
    images = fn.decoders.image_slice(
        encoded,
        start=start,
        shape=extent,
        axes=[0, 1],
        device="mixed" if device == "gpu" else "cpu",
        output_type=types.RGB,
        adjust_orientation=False,
        jpeg_fancy_upsampling=True,
        hw_decoder_load=hw_decoder_load,
    )
    # Numbers cannot be fed as names of interpolations, but seen as such.
    interpolation = fn.reinterpret(interpolation, dtype=types.INTERP_TYPE)
    images = fn.resize(images, size=size, interp_type=interpolation, antialias=True)
    images = fn.slice(images, window, [side, side], axes=[0, 1], out_of_bounds_policy="pad")
    images = fn.crop_mirror_normalize(images, mirror=flip, dtype=types.UINT8, output_layout="CHW")
    return images, fn.peek_image_shape(encoded, adjust_orientation=False)


class DaliBackend:
    """Makes batches with DALI.

    Args:
        index: the images.
        cfg: the crop size.
        device: a GPU to decode on, or the CPU.
        workers: threads.
        max_batch: images in the largest request.
    """

    def __init__(self, index: ImageIndex, cfg: DataConfig, device: torch.device, workers: int, max_batch: int):
        self.index = index
        self.cfg = cfg
        self.device = device
        self.workers = max(1, workers)
        self.max_batch = max_batch

    def batches(self, requests: Iterator[Crops]) -> Generator[Tensor, None, None]:
        """See :class:`data.backends.Backend`."""
        on_gpu = self.device.type == "cuda"
        ahead: list[Crops] = []

        with (
            TemporaryDirectory(prefix="coldstart-") as folder,
            closing(encoded_images(self.index, requests, Path(folder))) as images,
        ):

            def source():
                crops, encoded = next(images)
                ahead.append(crops)
                return encoded, *_columns(crops)

            pipeline = crop_pipeline(
                source,
                self.index.shards is None,
                "gpu" if on_gpu else "cpu",
                self.cfg.crop,
                self.cfg.hw_decoder_load,
                batch_size=self.max_batch,
                num_threads=self.workers,
                device_id=(self.device.index or 0) if on_gpu else None,
                prefetch_queue_depth=PREFETCH,
                exec_dynamic=True,
            )
            pipeline.build()
            yield from _held_while_used(self._run(pipeline, ahead)) if on_gpu else self._run(pipeline, ahead)

    def _run(self, pipeline: Pipeline, ahead: list[Crops]) -> Generator[Tensor, None, None]:
        while True:
            try:
                images, shapes = pipeline.run()
            except StopIteration:
                return
            except RuntimeError as error:
                raise unreadable(self.index, _merge(ahead), error) from error
            crops = ahead.pop(0)
            sizes = np.stack([self.index.heights[crops.index], self.index.widths[crops.index]], axis=1)
            if not np.array_equal(shapes.as_array()[:, :2], sizes):
                raise unreadable(self.index, crops, ValueError("sizes differ from the index"))
            # No copy: the dynamic executor's buffers belong to whoever holds them.
            yield torch.from_dlpack(images.as_tensor())


def _held_while_used(batches: Generator[Tensor, None, None]) -> Generator[Tensor, None, None]:
    """Hold each batch until a GPU is done with what was asked of it before the next one was taken.

    DALI writes into a buffer again once nobody holds it, and knows nothing of the work that still waits to read it.
    """
    held: deque[tuple[Tensor, torch.cuda.Event]] = deque()
    try:
        for batch in batches:
            yield batch
            done = torch.cuda.Event()
            done.record()
            held.append((batch, done))
            while held and held[0][1].query():
                held.popleft()
    finally:
        if held:
            held[-1][1].synchronize()


def _columns(crops: Crops) -> list[list[np.ndarray]]:
    columns = (crops.box[:, :2], crops.box[:, 2:], crops.size.astype(np.float32), crops.window)
    switches = (crops.flip.astype(np.int32), np.where(crops.cubic, CUBIC, LINEAR))
    return [list(np.ascontiguousarray(column)) for column in (*columns, *switches)]


def _merge(requests: list[Crops]) -> Crops:
    """Several requests as one: with prefetching, any of them may be the one that failed."""
    return Crops(*(np.concatenate([getattr(crops, field.name) for crops in requests]) for field in fields(Crops)))
