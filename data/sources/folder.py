"""An image folder: ``<split>/<class>/<image>``, each image a file of its own.

The first start lists the folder, reads the header of every image and writes an index. Later starts stat the class
folders (adding or removing a file changes a folder's modification time) and map the index; they never list the images.
"""

import os
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.config import DataConfig
from data.errors import DataError
from data.index import ImageIndex, Listed, Pieces, cached_index, scanned
from data.index.headers import read_header
from data.index.image_index import pack_texts, refuse_other_places, texts_of
from data.sources.source import PREPARE, Advice, EncodedSource
from data.sources.walking import class_folders, unreadable_folder, visible, walk

LISTED = 5  # names that a message lists
FLAT = ""  # the only class of a folder without class folders


class FolderSource(EncodedSource):
    """The images in a folder.

    Args:
        folder: the folder of the split.
        index: the index of its images.
    """

    form = "class folders"
    advice = Advice(
        at_start="repair or delete it",
        in_run="replace it with a readable image of the same name",
        changed="run touch on its folder, so that it is indexed again",
    )

    def __init__(self, folder: Path, index: ImageIndex):
        self.place = folder
        self.index = index

    @classmethod
    def fits(cls, cfg: DataConfig, split: str) -> bool:
        """See :class:`data.sources.Source`; a split fits if it has class folders."""
        try:
            return cfg.root is not None and bool(class_folders(Path(cfg.root) / split))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:  # opening it says what is wrong
            return True

    @classmethod
    def open(cls, cfg: DataConfig, split: str, build: bool = True, flat: bool = False) -> "FolderSource | None":
        """See :class:`data.sources.Source`.

        Args:
            cfg: the data set.
            split: the folder in ``cfg.root``.
            build: whether to build the index if needed.
            flat: whether the images are in the split's folder itself, without class folders.
        """
        folder = _folder_of(cfg, split)
        _refuse_without_classes(folder, flat)

        def is_current(index: ImageIndex) -> bool:
            refuse_other_places(index.paths)
            return Folders.of(index).unchanged(folder)

        index = cached_index(cfg, split, is_current, partial(_scanned_folder, folder), build)
        return None if index is None else cls(folder, index)

    def content(self, i: int) -> bytes:
        """See :class:`data.sources.EncodedSource`."""
        with open(self.path(i), "rb", buffering=0) as file:
            return file.readall()

    def path(self, i: int) -> str:
        """See :class:`data.sources.EncodedSource`."""
        return os.path.join(self.place, self.index.paths[i])


def _folder_of(cfg: DataConfig, split: str) -> Path:
    """The folder of a split.

    Raises:
        DataError: if there is none.
    """
    if cfg.root is None:
        hint = " or the environment variable IMAGENET_DIR" if cfg.name == "imagenet" else ""
        raise DataError(
            f"no images for data={cfg.name}: set data.root=/path/to/images{hint} (a folder that holds "
            f"{cfg.train_split}/<class>/ and {cfg.split}/<class>/); to try it without images, use experiment=quickstart"
        )
    root = Path(cfg.root)
    if not root.is_dir():
        raise DataError(
            f"data.root={root} is not a folder: set it to a folder that holds {cfg.train_split}/<class>/ and "
            f"{cfg.split}/<class>/"
        )
    if not (root / split).is_dir():
        raise DataError(_what_to_prepare(root) or _missing_split(cfg, root, split))
    return root / split


def _missing_split(cfg: DataConfig, root: Path, split: str) -> str:
    """What is wrong with a folder without that split: what it holds shows what to do."""
    message = f"{root / split} is not a folder: data.root must hold {split}/<class>/<image>"
    held = sorted(entry.name + "/" * entry.is_dir() for entry in visible(root))
    if not held:
        return f"{message}, and {root} is empty"
    more = f" and {len(held) - LISTED} more" if len(held) > LISTED else ""
    option = "data.train_split" if split == cfg.train_split else "data.split"
    other = f"; {option}=NAME takes another of its folders" if any(name.endswith("/") for name in held) else ""
    return f"{message}, and it holds {', '.join(held[:LISTED])}{more}{other}"


def _what_to_prepare(root: Path) -> str | None:
    """What to do with a folder whose files must be prepared before they can be read."""
    if any((root / name).is_file() for name in ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")):
        return f"{root} holds the official tar files: run {PREPARE} --tars {root} --to NEW, then set data.root=NEW"
    if any(next(folder.glob("*.parquet"), None) for folder in (root, root / "data")):
        return f"{root} holds parquet files: run {PREPARE} --parquet {root} --to NEW, then set data.root=NEW"
    return None


def _refuse_without_classes(folder: Path, flat: bool) -> None:
    """Raise if class folders are missing, before any image is read."""
    try:
        if flat or class_folders(folder):
            return
        kaggle = any(entry.name.startswith("ILSVRC2012_val_") for entry in os.scandir(folder))
    except OSError as error:
        raise unreadable_folder(error) from error
    command = f"{PREPARE} --folder {folder.parent} --to NEW_FOLDER"
    remedy = f"; for ImageNet from Kaggle, run {command}, then set data.root=NEW_FOLDER" if kaggle else ""
    raise DataError(f"{folder} has no class folders: it must hold <class>/<image>{remedy}")


@dataclass(frozen=True)
class Folders:
    """The folders an index was built from, with their modification times in nanoseconds."""

    names: list[str] = field(default_factory=list)
    mtimes: list[int] = field(default_factory=list)

    def add(self, name: str, mtime: int) -> None:
        """Add a folder."""
        self.names.append(name)
        self.mtimes.append(mtime)

    def unchanged(self, root: Path) -> bool:
        """Whether all these folders below ``root`` still have the same modification times."""
        try:
            return all(os.stat(root / n).st_mtime_ns == t for n, t in zip(self.names, self.mtimes, strict=True))
        except OSError:
            return False

    def arrays(self) -> dict[str, NDArray]:
        """The arrays that an index stores of them."""
        return pack_texts(folders=self.names) | {"mtimes": np.array(self.mtimes, dtype=np.int64)}

    @classmethod
    def of(cls, index: ImageIndex) -> "Folders":
        """The folders that an index stores."""
        return cls(list(texts_of(index.extra, "folders")), index.extra["mtimes"].tolist())


def _scanned_folder(folder: Path, pieces: Pieces) -> ImageIndex:
    """List a split's folder and read every image's header.

    Raises:
        DataError: if a folder cannot be read.
    """
    try:
        folders = Folders()
        folders.add(".", os.stat(folder).st_mtime_ns)
        classes = class_folders(folder) or [FLAT]
        listed = (_listed(folder, name, folders) for name in classes)
        index = scanned(folder, listed, lambda path: read_header(folder / path), pieces)
    except OSError as error:
        raise unreadable_folder(error) from error
    return replace(index, extra=folders.arrays())


def _listed(folder: Path, name: str, folders: Folders) -> Listed:
    """The images of one class. The folders that hold them are added to ``folders``."""
    images: list[str] = []
    mtimes: list[int] = []
    for relative, mtime, found in walk(folder, name):
        folders.add(relative, mtime)
        mtimes.append(mtime)
        images += found
    return Listed(name, sorted(images), str(mtimes))
