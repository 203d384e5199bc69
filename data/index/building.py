"""Builds an index: the header of every image is read once, and the result is kept in a file until it is outdated.

The source says how its images are listed and read, and whether an index from a file is current.
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

from data.cache import cache_dir, refuse_others
from data.config import DataConfig
from data.errors import DataError
from data.index.arrays import UNREADABLE, ArrayFile, write_arrays
from data.index.headers import Header
from data.index.image_index import ImageIndex, Strings, is_of_this_version, mapped_index

log = logging.getLogger(__name__)

THREADS = 32  # threads that read headers mostly wait for the disk


def index_file(root: Path, split: str, index_dir: str | None) -> Path:
    """The path of a split's index: beside the images if that folder is writable, else in the user's cache.

    Args:
        root: the folder of the data set, or the file that holds all of it.
        split: name of the split.
        index_dir: ``data.index_dir``, a folder to use instead of both.
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

    A new one is built if there is none, or if the one found is of another version, damaged or outdated. It is also
    built if bad images were found last time and would be an error now: somebody may have repaired them.

    Args:
        cfg: the data set, with its ``root``.
        split: name of the split.
        is_current: whether an index still describes the images; it must be quick and list no images.
        scan: builds a new index, see :func:`scanned`.
        build: whether to build a new index if needed; if not, ``None`` is returned in that case.

    Raises:
        DataError: if the index cannot be written, if one in the cache belongs to another user, and whatever ``scan``
            raises.
    """
    root = Path(str(cfg.root))
    path = index_file(root, split, cfg.index_dir)
    if path.is_relative_to(cache_dir()):  # an index beside the images is trusted as they are
        refuse_others(path)
    index = _found(path, root / split, is_current)
    if index is not None and index.bad and cfg.on_bad_image == "error":
        index = None
    if index is not None or not build:
        return index
    log.info("indexing %s (once)", root / split)
    return _written(path, scan())


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
        log.warning("the index %s cannot be read (%s): building it again", path, error)
        return None


def _written(path: Path, index: ImageIndex) -> ImageIndex:
    try:
        write_arrays(path, index.arrays())
        return mapped_index(ArrayFile(path, verify=False))
    except OSError as error:
        raise DataError(
            f"cannot write the index {path} ({error.strerror}): set data.index_dir to a folder with write permission"
        ) from error


def scanned(
    place: Path, classes: Iterable[tuple[str, Sequence[str]]], header: Callable[[str], Header | str]
) -> ImageIndex:
    """A new index of images; many threads read the headers.

    Args:
        place: where the images are, for messages.
        classes: in sorted order, the name of each class and the sorted paths of its images, ``<class>/<file>``.
        header: reads the header of the image at a path, or returns what is wrong with it, as
            :func:`data.index.headers.read_header` does.
    """
    names: list[str] = []
    rows: list[Rows] = []
    with (
        ThreadPoolExecutor(THREADS) as pool,
        tqdm(desc=f"index {place.name}", unit=" images", disable=None, leave=False) as bar,
    ):
        for name, paths in classes:
            headers = list(pool.map(header, paths))  # one class at a time keeps the queue short
            bar.update(len(paths))
            rows.append(Rows.read(place, paths, headers, len(names)))
            names.append(name)
    return joined_index(names, rows)


@dataclass(frozen=True)
class Rows:
    """Rows of an index that is being built: the images of one class or shard, and what was left out."""

    paths: Strings
    targets: NDArray[np.int32]
    sizes: NDArray[np.int32]  # (n, 2) height, width
    odd_colours: NDArray[np.bool_]
    lengths: NDArray[np.int64]
    bad: list[str]

    @classmethod
    def of(cls, paths: Sequence[str], targets: Sequence[int], headers: Sequence[Header], bad: list[str]) -> "Rows":
        """Rows of good images; ``bad`` names those that were left out."""
        sizes = np.array([(header.height, header.width) for header in headers], dtype=np.int32).reshape(-1, 2)
        odd_colours = np.array([header.odd_colours for header in headers], dtype=bool)
        lengths = np.array([header.length for header in headers], dtype=np.int64)
        return cls(Strings.pack(paths), np.array(targets, dtype=np.int32), sizes, odd_colours, lengths, bad)

    @classmethod
    def read(cls, place: Path, paths: Sequence[str], headers: Sequence[Header | str], target: int) -> "Rows":
        """Rows of the images of one class. An image with a reason instead of a header is left out."""
        found = list(zip(paths, headers, strict=True))
        good = [(path, header) for path, header in found if isinstance(header, Header)]
        bad = [f"{place / path} {why}" for path, why in found if isinstance(why, str)]
        return cls.of([path for path, _ in good], [target] * len(good), [header for _, header in good], bad)


def joined_index(classes: list[str], rows: Sequence[Rows]) -> ImageIndex:
    """The index of all rows; they must be in the order of the index."""
    rows = rows or [Rows.of([], [], [], [])]
    sizes = np.concatenate([part.sizes for part in rows])
    return ImageIndex(
        classes=classes,
        paths=Strings.join([part.paths for part in rows]),
        targets=np.concatenate([part.targets for part in rows]),
        heights=np.ascontiguousarray(sizes[:, 0]),
        widths=np.ascontiguousarray(sizes[:, 1]),
        odd_colours=frozenset(np.flatnonzero(np.concatenate([part.odd_colours for part in rows])).tolist()),
        bad=[entry for part in rows for entry in part.bad],
        lengths=np.concatenate([part.lengths for part in rows]),
    )
