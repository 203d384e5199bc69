"""Image folders: listed and read once, then opened by their index.

Later starts stat the class folders (a file added or removed changes a folder's modification time) and map one file;
they never list the images.
"""

import hashlib
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from errno import ENOENT
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data.cache import cache_dir
from data.errors import DataError
from data.index.arrays import UNREADABLE, ArrayFile, write_arrays
from data.index.headers import EXTENSIONS, Header, read_header
from data.index.image_index import (
    ImageIndex,
    Rows,
    is_of_this_version,
    joined_index,
    mapped_index,
    pack_texts,
    texts_of,
)

log = logging.getLogger(__name__)

FLAT = ""  # the one class of a folder without class folders
THREADS = 32  # reading headers waits for the disk, not for the processor


@dataclass(frozen=True)
class Folders:
    """The folders an index was built from, with their modification times in nanoseconds."""

    names: list[str]
    mtimes: list[int]

    def unchanged(self, root: Path) -> bool:
        try:
            return all(os.stat(root / n).st_mtime_ns == t for n, t in zip(self.names, self.mtimes, strict=True))
        except OSError:
            return False


def index_file(root: Path, split: str, index_dir: str | None) -> Path:
    """Where the index of a folder lies: in its root where that can be written, else in the user's cache."""
    if index_dir is None and os.access(root, os.W_OK):
        return root / f".coldstart-index-{split}.npz"
    where = Path(index_dir) if index_dir is not None else cache_dir() / "index"
    place = hashlib.sha256(os.fsencode((root / split).resolve())).hexdigest()[:12]
    return where / f"{split}-{place}.npz"


def find_index(path: Path, folder: Path) -> ImageIndex | None:
    """The index in a file, or None if there is none, it is of another version, damaged, or no longer true."""
    try:
        file = ArrayFile(path)
        if not is_of_this_version(file):
            return None
        folders = Folders(list(texts_of(file, "folders")), file.arrays["mtimes"].tolist())
        if not folders.unchanged(folder):
            log.info("%s has changed since it was indexed", folder)
            return None
        return mapped_index(file, folder)
    except FileNotFoundError:
        return None
    except UNREADABLE as error:
        log.warning("the index %s cannot be read (%s): building it anew", path, error)
        return None


def build_index(path: Path, folder: Path) -> ImageIndex:
    """List a split's folder, read every image's header, and write the index.

    Raises:
        DataError: if a folder cannot be read, or the index not be written.
    """
    log.info("indexing %s (once)", folder)
    label = f"index {folder.name}"
    try:
        folders = Folders(["."], [os.stat(folder).st_mtime_ns])
        classes = class_folders(folder) or [FLAT]
        with ThreadPoolExecutor(THREADS) as pool, tqdm(desc=label, unit=" images", disable=None, leave=False) as bar:
            rows = [_class_rows(folder, name, target, folders, pool, bar) for target, name in enumerate(classes)]
    except OSError as error:
        raise unreadable_folder(error) from error
    try:
        write_arrays(path, joined_index(folder, classes, rows).arrays() | folder_arrays(folders))
        return mapped_index(ArrayFile(path, verify=False), folder)
    except OSError as error:
        raise DataError(
            f"cannot write the index {path} ({error.strerror}): set data.index_dir to a folder that can be written"
        ) from error


def unreadable_folder(error: OSError) -> DataError:
    """The error for a folder, or what may be one, that cannot be read."""
    why = "a link to nothing" if os.path.islink(error.filename) and error.errno == ENOENT else error.strerror
    return DataError(f"{error.filename} cannot be read ({why}): mend or remove it")


def folder_arrays(folders: Folders) -> dict[str, NDArray]:
    """What an index file holds of its folders."""
    return pack_texts(folders=folders.names) | {"mtimes": np.array(folders.mtimes, dtype=np.int64)}


def class_folders(folder: Path) -> list[str]:
    """Names of the class folders of a split, sorted.

    Raises:
        OSError: if it cannot be read, or holds a link to nothing, which may have been a class.
    """
    return sorted(entry.name for entry in _visible(folder) if _is_folder(entry))


def _visible(folder: str | Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    if entry.is_symlink():
        os.stat(entry.path)
    return entry.is_dir()


def _is_named_as_image(entry: os.DirEntry[str]) -> bool:
    return os.path.splitext(entry.name)[1].lower() in EXTENSIONS


def _class_rows(folder: Path, name: str, target: int, folders: Folders, pool: ThreadPoolExecutor, bar: tqdm) -> Rows:
    """The rows of one class; the folders it takes in are added to ``folders``."""
    images: list[str] = []
    for relative, mtime, found in walk(folder, name):
        folders.names.append(relative)
        folders.mtimes.append(mtime)
        images += found
    images.sort()
    headers = list(pool.map(lambda image: read_header(folder / image), images))  # a class at a time: no long queue
    bar.update(len(images))
    good = [(image, header) for image, header in zip(images, headers, strict=True) if isinstance(header, Header)]
    bad = [f"{folder / image} {why}" for image, why in zip(images, headers, strict=True) if isinstance(why, str)]
    return Rows.of([image for image, _ in good], [target] * len(good), [header for _, header in good], bad)


def walk(root: Path, relative: str) -> Iterator[tuple[str, int, list[str]]]:
    """Each folder at and below ``relative``, with its modification time and the images in it.

    The time is taken before listing, so a file that arrives meanwhile makes the index stale instead of being missed.
    """
    mtime = os.stat(root / relative).st_mtime_ns
    entries = _visible(root / relative)
    images = [e.name for e in entries if _is_named_as_image(e) and not e.is_dir()]
    yield relative, mtime, [os.path.join(relative, image) for image in images]
    for entry in entries:
        if entry.is_dir() if _is_named_as_image(entry) else _is_folder(entry):
            yield from walk(root, os.path.join(relative, entry.name))
