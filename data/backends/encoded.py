"""Images as DALI takes them: the path of each, or its file's content, read a batch ahead."""

import os
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.backends import unreadable
from data.crops import Crops
from data.index.headers import BROKEN
from data.sources import EncodedSource

AHEAD = 1  # batches read before they are asked for
READERS = 16  # reading waits for the disk, not for the processor

Encoded = list[NDArray[np.uint8]]


def has_paths(source: EncodedSource) -> bool:
    """Whether each image of a source is a local file of its own, which DALI reads by its path in its own threads."""
    return source.path(0) is not None


def encoded_images(
    source: EncodedSource, requests: Iterator[Crops], folder: Path
) -> Generator[tuple[Crops, Encoded], None, None]:
    """Each request with its images: their paths, or the content of their files where the source has no paths.

    CMYK images come decoded by Pillow, without loss; those that DALI reads by their path are written to ``folder``,
    which must outlive the reading.

    Raises:
        DataError: naming the image that cannot be read.
    """
    by_path, cmyk = has_paths(source), source.index.cmyk
    with ThreadPoolExecutor(READERS) as pool:

        def image(row: int) -> NDArray[np.uint8]:
            if by_path:
                path = _ppm_file(source, row, folder) if row in cmyk else source.path(row)
                return np.frombuffer(os.fsencode(str(path)), dtype=np.uint8)
            return np.frombuffer(_ppm(source, row) if row in cmyk else source.read(row), dtype=np.uint8)

        waiting: deque[tuple[Crops, Iterator[NDArray[np.uint8]]]] = deque()

        def first() -> tuple[Crops, Encoded]:
            crops, images = waiting.popleft()
            try:
                return crops, list(images)
            except BROKEN as error:
                raise unreadable(source, crops, error) from error

        for crops in requests:
            rows = crops.index.tolist()
            waiting.append((crops, map(image, rows) if by_path else pool.map(image, rows)))
            if len(waiting) > AHEAD:
                yield first()
        while waiting:
            yield first()


def _ppm(source: EncodedSource, row: int) -> bytes:
    """A decoded image in a format that says nothing but pixels."""
    content = BytesIO()
    with Image.open(BytesIO(source.read(row))) as image:
        image.convert("RGB").save(content, format="PPM")
    return content.getvalue()


def _ppm_file(source: EncodedSource, row: int, folder: Path) -> Path:
    path = folder / f"{row}.ppm"
    if not path.exists():  # it may be asked for again while DALI reads it
        path.write_bytes(_ppm(source, row))
    return path
