"""What a set is prepared from: the official tar files or an image folder. They are only read, never changed."""

import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from stat import S_ISREG
from typing import NamedTuple, Protocol

from data.errors import DataError
from data.index.building import THREADS
from data.index.headers import nonblocking
from data.index.tars import members
from data.sources.walking import class_folders, unreadable_folder, walk

TRAIN_TAR, VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
CLASS_TAR = re.compile(r"(n\d{8})\.tar")
TRAIN_IMAGE = re.compile(r"(n\d{8})_\d+\.JPEG")
VAL_IMAGE = re.compile(r"(ILSVRC2012_val_\d{8})\.JPEG")


class Member(NamedTuple):
    """An image of the source: its path in the data set, and where its bytes are."""

    path: str  # <class>/<file>
    source: str
    offset: int
    size: int

    def read(self) -> bytes:
        """The bytes of the image. Raises a ``DataError`` that names the source if they cannot be read."""
        try:
            with open(self.source, "rb", buffering=0, opener=nonblocking) as file:
                if not S_ISREG(os.fstat(file.fileno()).st_mode):  # such as a pipe, which would be waited for
                    raise DataError(f"{self.source} is not a file that holds an image: remove it")
                content = os.pread(file.fileno(), self.size, self.offset)
        except OSError as error:
            raise DataError(f"{self.source} cannot be read ({error.strerror})") from error
        if len(content) != self.size:
            raise DataError(f"{self.source} is cut short, or is being changed")
        return content


class ClassImages(Protocol):
    """The images of one class."""

    @property
    def name(self) -> str:
        """Name of the class."""

    @property
    def size(self) -> int:
        """Bytes of its images, or a little more."""

    def listing(self) -> tuple[list[Member], list[str]]:
        """Its images, sorted by path, and a line about each other file."""


@dataclass(frozen=True)
class Split:
    """What a split is made from.

    Attributes:
        classes: sorted by name.
        left_out: a line about each member of the source that is no image of the set.
    """

    name: str
    classes: list[ClassImages]
    left_out: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ClassTar:
    """One class of the training images: a tar file inside the official one."""

    name: str
    tar: Path
    offset: int
    size: int

    def listing(self) -> tuple[list[Member], list[str]]:
        found: dict[str, Member] = {}
        others = []
        for info in members(self.tar, self.offset, self.offset + self.size):
            # Only the last part of a name is used: members of a tar file may be called ../../anything.
            name = PurePosixPath(info.name).name
            match = TRAIN_IMAGE.fullmatch(name)
            if match and match[1] == self.name:
                found[name] = Member(f"{self.name}/{name}", str(self.tar), info.offset_data, info.size)
            else:
                others.append(f"{self.name}.tar: {info.name} is not named like {self.name}_1.JPEG")
        return [found[name] for name in sorted(found)], others


@dataclass(frozen=True)
class ClassMembers:
    """One class whose images are listed already."""

    name: str
    members: list[Member]

    @property
    def size(self) -> int:
        return sum(member.size for member in self.members)

    def listing(self) -> tuple[list[Member], list[str]]:
        return self.members, []


@dataclass(frozen=True)
class ClassFolder:
    """One class of an image folder. Its images are listed only when they are needed: there may be millions."""

    name: str
    folder: Path  # of the split
    size: int

    @classmethod
    def measured(cls, folder: Path, name: str) -> "ClassFolder":
        """A class folder and the bytes in it."""
        members, _ = cls(name, folder, 0).listing()
        if not members:
            raise DataError(f"class folder {folder / name} holds no images: add images to it or delete it")
        return cls(name, folder, sum(member.size for member in members))

    def listing(self) -> tuple[list[Member], list[str]]:
        try:
            images = sorted(image for _, _, found in walk(self.folder, self.name) for image in found)
            paths = [os.path.join(self.folder, image) for image in images]
            return [Member(i, p, 0, os.stat(p).st_size) for i, p in zip(images, paths, strict=True)], []
        except OSError as error:
            raise unreadable_folder(error) from error


def official_train(tars: Path) -> Split:
    """The training images in the official tar file, which holds one tar file for each class.

    Raises:
        DataError: if it is missing, damaged or holds no classes.
    """
    tar, left_out, classes = _find(tars, TRAIN_TAR, "train"), [], {}
    for info in members(tar):
        name = PurePosixPath(info.name).name
        if match := CLASS_TAR.fullmatch(name):
            classes[match[1]] = ClassTar(match[1], tar, info.offset_data, info.size)
        else:
            left_out.append(f"{tar.name}: {info.name} is not named like n01234567.tar")
    if not classes:
        raise DataError(f"{tar} holds no n01234567.tar: it is not the official {TRAIN_TAR}")
    return Split("train", [classes[name] for name in sorted(classes)], left_out)


def official_val(tars: Path, class_of: Mapping[str, str]) -> Split:
    """The validation images in the official tar file, which has no class folders.

    Args:
        tars: the folder of the tar file.
        class_of: class of each image, by its name without extension.

    Raises:
        DataError: if it is missing, damaged or holds no images, or an image has no class.
    """
    tar = _find(tars, VAL_TAR, "val")
    return _flat_val(tar, [(info.name, str(tar), info.offset_data, info.size) for info in members(tar)], class_of)


def flat_val_folder(folder: Path, class_of: Mapping[str, str]) -> Split:
    """The validation images in a folder without class folders, as Kaggle has them; see :func:`official_val`."""
    files = [entry for entry in os.scandir(folder) if entry.is_file() and not entry.name.startswith(".")]
    return _flat_val(folder, [(file.name, file.path, 0, file.stat().st_size) for file in files], class_of)


def _flat_val(where: Path, files: list[tuple[str, str, int, int]], class_of: Mapping[str, str]) -> Split:
    """Sort validation images into their classes; ``files`` gives name, file, offset and size of each."""
    found: dict[str, Member] = {}
    left_out = []
    for full_name, source, offset, size in files:
        name = PurePosixPath(full_name).name
        if not (match := VAL_IMAGE.fullmatch(name)):
            left_out.append(f"{where.name}: {full_name} is not named like ILSVRC2012_val_00000001.JPEG")
        elif match[1] not in class_of:
            raise DataError(f"{name} in {where} has no class in the list of --val-labels: give a list of all images")
        else:
            found[name] = Member(f"{class_of[match[1]]}/{name}", source, offset, size)
    if not found:
        raise DataError(f"{where} holds no ILSVRC2012_val_00000001.JPEG: it is not the official {VAL_TAR}")
    classes: dict[str, list[Member]] = {}
    for member in sorted(found.values()):
        classes.setdefault(member.path.split("/")[0], []).append(member)
    return Split("val", [ClassMembers(name, classes[name]) for name in sorted(classes)], left_out)


def split_folder(root: Path, split: str) -> Path:
    """The folder of a split.

    Raises:
        DataError: if there is none.
    """
    if not (root / split).is_dir():
        raise DataError(
            f"{root / split} is not a folder: --folder must hold {split}/<class>/<image>; --splits chooses the splits"
        )
    return root / split


def image_folder(root: Path, split: str) -> Split:
    """The images of an image folder, ``root/split/<class>/<image>``.

    Raises:
        DataError: if there are no class folders, one holds no images, or something cannot be read.
    """
    folder = split_folder(root, split)
    try:
        names = class_folders(folder)
    except OSError as error:
        raise unreadable_folder(error) from error
    with ThreadPoolExecutor(THREADS) as pool:
        classes: list[ClassImages] = list(pool.map(partial(ClassFolder.measured, folder), names))
    if not classes:
        raise DataError(f"{folder} has no class folders: it must hold <class>/<image>")
    return Split(split, classes)


def is_flat(folder: Path) -> bool:
    """Whether a folder holds validation images and no class folders."""
    try:
        return (
            folder.is_dir()
            and not class_folders(folder)
            and any(VAL_IMAGE.fullmatch(file.name) for file in folder.iterdir())
        )
    except OSError as error:
        raise unreadable_folder(error) from error


def _find(tars: Path, name: str, split: str) -> Path:
    if not (tars / name).is_file():
        other = "val" if split == "train" else "train"
        raise DataError(f"{tars / name} is missing: put it there, or prepare only the rest with --splits {other}")
    return tars / name
