"""Walks through class folders and the images in them."""

import os
from collections.abc import Iterator
from errno import ENOENT
from pathlib import Path

from data.errors import DataError
from data.index.headers import EXTENSIONS


def unreadable_folder(error: OSError) -> DataError:
    """The error for a path that cannot be read and that is, or may be, a folder."""
    if isinstance(error, PermissionError):  # the path may lie in a folder that this user may not enter
        return DataError(f"{error.filename} cannot be read ({error.strerror}): ask its owner for the right to read it")
    why = "a broken link" if os.path.islink(error.filename) and error.errno == ENOENT else error.strerror
    return DataError(f"{error.filename} cannot be read ({why}): repair or delete it")


def class_folders(folder: Path) -> list[str]:
    """Names of the class folders of a split, sorted.

    Raises:
        OSError: if it cannot be read, or holds a broken link, which may have been a class folder.
    """
    return sorted(entry.name for entry in visible(folder) if _is_folder(entry))


def visible(folder: str | Path) -> list[os.DirEntry[str]]:
    """The entries of a folder whose names do not begin with a dot."""
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    if entry.is_symlink():
        os.stat(entry.path)  # raises for a broken link
    return entry.is_dir()


def _is_named_as_image(entry: os.DirEntry[str]) -> bool:
    return os.path.splitext(entry.name)[1].lower() in EXTENSIONS


def walk(root: Path, relative: str) -> Iterator[tuple[str, int, list[str]]]:
    """The folder ``relative`` and each folder below it, with its modification time and the images in it.

    The time is read before the folder is listed. A file that arrives in between makes the index outdated, so it is not
    missed for good.
    """
    mtime = os.stat(root / relative).st_mtime_ns
    entries = visible(root / relative)
    images = [e.name for e in entries if _is_named_as_image(e) and not e.is_dir()]
    yield relative, mtime, [os.path.join(relative, image) for image in images]
    for entry in entries:
        # A broken link raises, unless it is named as an image: then it is one that cannot be read.
        is_folder = entry.is_dir() if _is_named_as_image(entry) else _is_folder(entry)
        if is_folder:
            yield from walk(root, os.path.join(relative, entry.name))
