"""Opening a split: an image folder by an index that is built where needed, or packed shards by the one beside them."""

import logging
import os
from pathlib import Path

import numpy as np

from data.errors import DataError
from data.index.arrays import UNREADABLE, ArrayFile
from data.index.folders import build_index, class_folders, find_index, index_file, unreadable_folder
from data.index.image_index import ImageIndex, is_of_this_version, mapped_index
from data.index.shards import PATTERN

log = logging.getLogger(__name__)

PACKED_INDEX = "index.npz"  # a split that holds this file is packed
PREPARE = "python scripts/prepare_imagenet.py"


def load_index(
    root: Path,
    split: str,
    index_dir: str | None = None,
    on_bad_image: str = "error",
    build: bool = True,
    flat: bool = False,
) -> ImageIndex | None:
    """The index of ``root/split``: of its shards, or of its class folders, built anew where it is no longer true.

    Args:
        root: folder of the data set.
        split: folder inside it that holds one folder a class, or shards and their index.
        index_dir: where a folder's index lies; default in ``root`` if that can be written, else in the user's cache.
        on_bad_image: ``"error"`` or ``"skip"``: what a file that is no readable image means.
        build: whether to build it where needed; otherwise ``None`` is returned then.
        flat: whether the images lie in the split's folder itself, which has no class folders.

    Raises:
        DataError: if the folder is missing or empty, a class has no images, a file is no image, or a shard or the
            index of the shards is not as it was written.
    """
    folder = root / split
    try:
        if not folder.is_dir():
            raise DataError(f"{folder} is no folder: data.root must hold {split}/<class>/<image>")
        if (folder / PACKED_INDEX).is_file():
            index: ImageIndex | None = _packed_index(folder)
        else:
            index = _folder_index(root, split, index_dir, on_bad_image, build, flat)
    except PermissionError as error:
        raise unreadable_folder(error) from error
    if index is None:
        return None
    if index.bad and on_bad_image == "error":
        more = f" and {len(index.bad) - 1} more" if len(index.bad) > 1 else ""
        mend = "mend or remove it" if index.shards is None else "mend it at its source and pack it again"
        raise DataError(f"{index.bad[0]}{more}: {mend}, or leave such files out with data.on_bad_image=skip")
    _refuse_empty(index)
    if index.bad:
        log.warning("left out %d files that are no images, first %s", len(index.bad), index.bad[0])
    return index


def _folder_index(
    root: Path, split: str, index_dir: str | None, on_bad_image: str, build: bool, flat: bool
) -> ImageIndex | None:
    folder, path = root / split, index_file(root, split, index_dir)
    if next(folder.glob(PATTERN), None) is not None:
        raise DataError(
            f"{folder} holds shards but no {PACKED_INDEX}: repeat the {PREPARE} command that wrote them, "
            "which goes on where it stopped"
        )
    _refuse_without_classes(folder, flat)
    index = find_index(path, folder)
    if index is not None and index.bad and on_bad_image == "error":
        index = None  # a file mended in place does not change its folder's modification time
    return build_index(path, folder) if index is None and build else index


def _packed_index(folder: Path) -> ImageIndex:
    path = folder / PACKED_INDEX
    again = f"remove it and write it anew with {PREPARE} --folder {folder.parent} --splits {folder.name} --layout keep"
    try:
        file = ArrayFile(path)
        if not is_of_this_version(file):
            raise DataError(f"the index {path} is of another version of this project: {again}")
        index = mapped_index(file, folder)
    except DataError:
        raise
    except UNREADABLE as error:
        raise DataError(f"the index {path} is damaged ({error}): {again}") from error
    if index.shards is None:
        raise DataError(f"the index {path} is not of shards: {again}")
    index.shards.check()
    return index


def _refuse_without_classes(folder: Path, flat: bool) -> None:
    """Raise where class folders are missing, before any image is looked at."""
    try:
        if flat or class_folders(folder):
            return
        kaggle = any(entry.name.startswith("ILSVRC2012_val_") for entry in os.scandir(folder))
    except OSError as error:
        raise unreadable_folder(error) from error
    sort = f"{PREPARE} --folder {folder.parent} --to NEW_FOLDER"
    remedy = f"; {sort} sorts ImageNet's as Kaggle has them, then set data.root=NEW_FOLDER" if kaggle else ""
    raise DataError(f"{folder} has no class folders: it must hold <class>/<image>{remedy}")


def _refuse_empty(index: ImageIndex) -> None:
    if not index.classes:
        raise DataError(f"{index.root} has no class folders: it must hold <class>/<image>")
    counts = np.bincount(index.targets, minlength=len(index.classes))
    if not counts.all():
        empty = index.classes[int(counts.argmin())]
        raise DataError(f"class folder {index.root / empty} holds no images: fill it or remove it")
