"""Builds an index: the header of every image is read once, and the result is kept in a file until it is outdated.

The source says how its images are listed and read, and whether an index from a file is current.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from data.config import DataConfig
from data.errors import in_one_line
from data.index.arrays import UNREADABLE, ArrayFile, write_arrays
from data.index.headers import Header
from data.index.image_index import ImageIndex, is_of_this_version, mapped_index
from data.index.pieces import Pieces, unwritable_index
from data.index.rows import Rows, joined_index
from data.storage.cache import cache_dir, refuse_others

log = logging.getLogger(__name__)

PIECES = ".pieces"  # suffix of the folder for an index that is being built
THREADS = 32  # threads that read headers mostly wait for the disk


class Listed(NamedTuple):
    """A class whose images are to be indexed.

    Attributes:
        paths: sorted, ``<class>/<file>``.
        stamp: a text that changes when the images may have changed. What an interrupted start has read is used only if
            it is the same.
    """

    name: str
    paths: Sequence[str]
    stamp: str


def index_file(root: Path, split: str, index_dir: str | None) -> Path:
    """The path of a split's index: beside the images if that folder is writable, else in the user's cache.

    Args:
        root: the folder of the data set, or the file that holds all of it.
        split: name of the split.
        index_dir: ``data.index_dir``, a folder to use instead of both.
    """
    beside = index_beside(root, split, root.is_dir())
    if index_dir is None and os.access(beside.parent, os.W_OK):
        return beside
    where = Path(index_dir) if index_dir is not None else cache_dir() / "index"
    place = hashlib.sha256(os.fsencode((root / split).resolve())).hexdigest()[:12]
    return where / f"{split}-{place}.npz"


def index_beside(root: Path, split: str, is_folder: bool) -> Path:
    """The path of an index beside the images: in ``root``, or beside it if it is one file that holds all of them."""
    folder, name = (root, split) if is_folder else (root.parent, f"{root.name}-{split}")
    return folder / f".coldstart-index-{name}.npz"


def cached_index(
    cfg: DataConfig,
    split: str,
    is_current: Callable[[ImageIndex], bool],
    scan: Callable[[Pieces], ImageIndex],
    build: bool = True,
) -> ImageIndex | None:
    """The index that an earlier start has written, or a new one.

    A new one is built if there is none, or if the one found is of another version, damaged or outdated. It is also
    built if bad images were found last time and would be an error now: somebody may have repaired them.

    Args:
        cfg: the data set, with its ``root``.
        split: name of the split.
        is_current: whether an index still describes the images; it must be quick and list no images.
        scan: builds a new index, see :func:`scanned`. The pieces it keeps serve the next start
            if this one is interrupted.
        build: whether to build a new index if needed; if not, ``None`` is returned in that case.

    Raises:
        DataError: if the index cannot be written, if one in the cache belongs to another user, and whatever ``scan``
            raises.
    """
    root = Path(str(cfg.root))
    path = index_file(root, split, cfg.index_dir)
    if path.is_relative_to(cache_dir()):  # an index beside the images is trusted as they are
        refuse_others(path)
        refuse_others(path.with_suffix(PIECES))
    index = _found(path, root / split, is_current)
    if index is not None and index.bad and cfg.on_bad_image == "error":
        index = None
    if index is not None or not build:
        return index
    log.info("indexing %s (once)", root / split)
    pieces = Pieces(path.with_suffix(PIECES))
    index = _written(path, scan(pieces))
    pieces.remove()
    return index


def _found(path: Path, place: Path, is_current: Callable[[ImageIndex], bool]) -> ImageIndex | None:
    """The index in a file; ``None`` if there is none, or it is of another version, damaged or outdated."""
    try:
        file = ArrayFile(path)
        if not is_of_this_version(file):
            log.info("%s was indexed by another version of this project", place)
            return None
        index = mapped_index(file)
        if not is_current(index):
            log.info("%s has changed since it was indexed", place)
            return None
        return index
    except FileNotFoundError:
        return None
    except UNREADABLE as error:
        log.warning("the index %s cannot be read (%s): building it again", path, in_one_line(error))
        return None


def _written(path: Path, index: ImageIndex) -> ImageIndex:
    try:
        write_arrays(path, index.arrays())
        return mapped_index(ArrayFile(path, verify=False))
    except OSError as error:
        raise unwritable_index(path, error) from error


def scanned(place: Path, listed: Iterable[Listed], header: Callable[[str], Header | str], pieces: Pieces) -> ImageIndex:
    """A new index of images in class folders; many threads read the headers. See :func:`scanned_rows`."""
    return joined_index(scanned_rows(place, listed, header, pieces))


def scanned_rows(
    place: Path, listed: Iterable[Listed], header: Callable[[str], Header | str], pieces: Pieces
) -> list[Rows]:
    """The rows of each class.

    Args:
        place: where the images are, for messages.
        listed: the classes in sorted order.
        header: reads the header of the image at a path, or returns what is wrong with it, as
            :func:`data.index.headers.read_header` does.
        pieces: what an interrupted start has read already.
    """
    rows: list[Rows] = []
    with ThreadPoolExecutor(THREADS) as pool, progress(place) as bar:
        for name, paths, stamp in listed:  # one class at a time keeps the queue short
            read = partial(_class_rows, pool, place, name, paths, header)
            rows.append(pieces.rows((stamp, name, *paths), read))
            bar.update(len(paths))
    return rows


def _class_rows(
    pool: ThreadPoolExecutor, place: Path, name: str, paths: Sequence[str], header: Callable[[str], Header | str]
) -> Rows:
    """The rows of one class. An image with a reason instead of a header is left out."""
    found = list(zip(paths, pool.map(header, paths), strict=True))
    good = [(path, header) for path, header in found if isinstance(header, Header)]
    bad = [f"{place / path} {why}" for path, why in found if isinstance(why, str)]
    return Rows.of([path for path, _ in good], [name] * len(good), [header for _, header in good], bad, [name])


def progress(place: Path, unit: str = " images", total: int | None = None) -> "tqdm[Any]":
    """A progress bar of what is indexed. It is shown only on a terminal."""
    return tqdm(desc=f"index {place.name}", unit=unit, total=total, disable=None, leave=False)
