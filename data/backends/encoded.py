"""Images in the form that DALI takes: the path of each, or the content of its file, read one batch ahead."""

import os
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.backends import unreadable
from data.concurrency.threads import begun_ahead
from data.index.headers import BROKEN
from data.planning.crops import Crops
from data.sources import EncodedSource

READERS = 16  # threads: they mostly wait for the disk

Encoded = list[NDArray[np.uint8]]


def has_paths(source: EncodedSource) -> bool:
    """Whether each image of a source is a local file of its own. DALI reads such files in its own threads."""
    return source.path(0) is not None


def encoded_images(
    source: EncodedSource, requests: Iterator[Crops], folder: Path
) -> Generator[tuple[Crops, Encoded], None, None]:
    """Each request with its images: their paths, or the contents of their files if the source has no paths.

    Pillow decodes JPEGs with odd colours (CMYK, RGB) to PPM, without loss. If DALI reads by path, these PPM files are
    written to ``folder``, which must exist until DALI has read them.

    Raises:
        DataError: the message names the image that cannot be read.
    """
    by_path, odd_colours = has_paths(source), source.index.odd_colours
    with ThreadPoolExecutor(READERS) as pool:

        def image(row: int) -> NDArray[np.uint8]:
            if by_path:
                path = _ppm_file(source, row, folder) if row in odd_colours else source.path(row)
                return np.frombuffer(os.fsencode(str(path)), dtype=np.uint8)
            return np.frombuffer(_ppm(source, row) if row in odd_colours else source.read(row), dtype=np.uint8)

        begin = map if by_path else pool.map  # the pool begins to read at once
        for crops, begun in begun_ahead((crops, begin(image, crops.index.tolist())) for crops in requests):
            try:
                images = list(begun)
            except BROKEN as error:
                raise unreadable(source, crops, error) from error
            yield crops, images


def _ppm(source: EncodedSource, row: int) -> bytes:
    """A decoded image in PPM, a format that holds only pixels."""
    content = BytesIO()
    with Image.open(BytesIO(source.read(row))) as image:
        image.convert("RGB").save(content, format="PPM")
    return content.getvalue()


def _ppm_file(source: EncodedSource, row: int, folder: Path) -> Path:
    path = folder / f"{row}.ppm"
    if not path.exists():  # do not write it again: DALI may be reading it
        path.write_bytes(_ppm(source, row))
    return path
