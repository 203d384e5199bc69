"""Building an index: the header of every image is read once, and the result is kept in a file until it is not true.

What a source does about it: it says how its images are listed and read, and whether a file that is found is current.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data.cache import cache_dir
from data.config import DataConfig
from data.errors import DataError
from data.index.arrays import UNREADABLE, ArrayFile, write_arrays
from data.index.headers import Header
from data.index.image_index import ImageIndex, Strings, is_of_this_version, mapped_index

log = logging.getLogger(__name__)

THREADS = 32  # reading headers waits for the disk, not for the processor


def index_file(root: Path, split: str, index_dir: str | None) -> Path:
    """Where the index of a split lies: beside the images where that can be written, else in the user's cache.

    Args:
        root: the folder of the data set, or the file that holds all of it.
        split: name of the split.
        index_dir: ``data.index_dir``, a folder that takes the place of both.
    """
    folder, name = (root, split) if root.is_dir() else (root.parent, f"{root.name}-{split}")
    if index_dir is None and os.access(folder, os.W_OK):
        return folder / f".coldstart-index-{name}.npz"
    where = Path(index_dir) if index_dir is not None else cache_dir() / "index"
    place = hashlib.sha256(os.fsencode((root / split).resolve())).hexdigest()[:12]
    return where / f"{split}-{place}.npz"


def cached_index(
    cfg: DataConfig,
    split: str,
    is_current: Callable[[ImageIndex], bool],
    scan: Callable[[], ImageIndex],
    build: bool = True,
) -> ImageIndex | None:
    """The index that an earlier start has written, or a new one.

    A new one is built where there is none, or it is of another version, damaged or no longer true. So it is where bad
    images were found the last time and would be an error now: somebody may have mended them.

    Args:
        cfg: the data set, with its ``root``.
        split: name of the split.
        is_current: whether an index still says what there is; a quick look that lists no images.
        scan: makes a new one, see :func:`scanned`.
        build: whether to do so; otherwise ``None`` is returned where it would be needed.

    Raises:
        DataError: if the index cannot be written, and whatever ``scan`` raises.
    """
    root = Path(str(cfg.root))
    path = index_file(root, split, cfg.index_dir)
    index = _found(path, root / split, is_current)
    if index is not None and index.bad and cfg.on_bad_image == "error":
        index = None
    if index is not None or not build:
        return index
    log.info("indexing %s (once)", root / split)
    return _written(path, scan())


def _found(path: Path, place: Path, is_current: Callable[[ImageIndex], bool]) -> ImageIndex | None:
    """The index in a file; None if there is none, it is of another version, damaged, or no longer true."""
    try:
        file = ArrayFile(path)
        if not is_of_this_version(file):
            return None
        index = mapped_index(file)
        if not is_current(index):
            log.info("%s has changed since it was indexed", place)
            return None
        return index
    except FileNotFoundError:
        return None
    except UNREADABLE as error:
        log.warning("the index %s cannot be read (%s): building it anew", path, error)
        return None


def _written(path: Path, index: ImageIndex) -> ImageIndex:
    try:
        write_arrays(path, index.arrays())
        return mapped_index(ArrayFile(path, verify=False))
    except OSError as error:
        raise DataError(
            f"cannot write the index {path} ({error.strerror}): set data.index_dir to a folder that can be written"
        ) from error


def scanned(
    place: Path, classes: Iterable[tuple[str, Sequence[str]]], header: Callable[[str], Header | str]
) -> ImageIndex:
    """The index of images whose headers are read now, by many threads.

    Args:
        place: where they lie, for people.
        classes: in sorted order, name and sorted paths of the images of each, ``<class>/<file>``.
        header: reads that of an image by its path, or says what is wrong with it, as
            :func:`data.index.headers.read_header` does.
    """
    names: list[str] = []
    rows: list[Rows] = []
    with (
        ThreadPoolExecutor(THREADS) as pool,
        tqdm(desc=f"index {place.name}", unit=" images", disable=None, leave=False) as bar,
    ):
        for name, paths in classes:
            headers = list(pool.map(header, paths))  # a class at a time: no long queue
            bar.update(len(paths))
            rows.append(Rows.read(place, paths, headers, len(names)))
            names.append(name)
    return joined_index(names, rows)


@dataclass(frozen=True)
class Rows:
    """Rows of an index in the making: the images of one class or shard, and what was left out."""

    paths: Strings
    targets: NDArray[np.int32]
    sizes: NDArray[np.int32]  # (n, 2) height, width
    cmyk: NDArray[np.bool_]
    lengths: NDArray[np.int64]
    bad: list[str]

    @classmethod
    def of(cls, paths: Sequence[str], targets: Sequence[int], headers: Sequence[Header], bad: list[str]) -> "Rows":
        """Rows of images that are all good."""
        sizes = np.array([(header.height, header.width) for header in headers], dtype=np.int32).reshape(-1, 2)
        cmyk = np.array([header.cmyk for header in headers], dtype=bool)
        lengths = np.array([header.length for header in headers], dtype=np.int64)
        return cls(Strings.pack(paths), np.array(targets, dtype=np.int32), sizes, cmyk, lengths, bad)

    @classmethod
    def read(cls, place: Path, paths: Sequence[str], headers: Sequence[Header | str], target: int) -> "Rows":
        """Rows of the images of one class, of which some are left out: those with a reason instead of a header."""
        found = list(zip(paths, headers, strict=True))
        good = [(path, header) for path, header in found if isinstance(header, Header)]
        bad = [f"{place / path} {why}" for path, why in found if isinstance(why, str)]
        return cls.of([path for path, _ in good], [target] * len(good), [header for _, header in good], bad)


def joined_index(classes: list[str], rows: Sequence[Rows]) -> ImageIndex:
    """The index of all rows, which are in its order."""
    rows = rows or [Rows.of([], [], [], [])]
    sizes = np.concatenate([part.sizes for part in rows])
    return ImageIndex(
        classes=classes,
        paths=Strings.join([part.paths for part in rows]),
        targets=np.concatenate([part.targets for part in rows]),
        heights=np.ascontiguousarray(sizes[:, 0]),
        widths=np.ascontiguousarray(sizes[:, 1]),
        cmyk=frozenset(np.flatnonzero(np.concatenate([part.cmyk for part in rows])).tolist()),
        bad=[entry for part in rows for entry in part.bad],
        lengths=np.concatenate([part.lengths for part in rows]),
    )
