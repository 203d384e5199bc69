"""The evaluation sets with ImageNet's classes: what each set is, how it is stored, and which answers are right.

To add a set, describe it in ``SETS`` and give it an option in ``EvalSetsConfig``.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.config import DataConfig
from data.errors import DataError
from data.index import ImageIndex
from data.sets.answers import listed_answers, read_list, real_answers
from data.sets.dataset import is_prepared, open_split
from data.sets.labels import IMAGENET_CLASSES, are_integers, wnids
from data.sources import Source, accepted, source_kind
from data.sources.folder import FolderSource
from data.sources.walking import unreadable_folder


@dataclass(frozen=True)
class EvalSet:
    """An evaluation set.

    Attributes:
        title: its name in tables.
        images: number of images that count in the whole set.
        source: the paper.
        classes: file in timm's metadata that lists the WordNet ids of the set's classes.
        by_name: whether the answers follow from the names of ImageNet's validation images, not from class folders.
    """

    title: str
    images: int
    source: str
    classes: str = "imagenet_synsets.txt"
    by_name: bool = False


SETS = {
    "imagenet": EvalSet("ImageNet", 50_000, "Russakovsky et al., IJCV 2015, arXiv:1409.0575"),
    "real": EvalSet("ImageNet ReaL", 46_837, "Beyer et al., 2020, arXiv:2006.07159", by_name=True),
    "v2": EvalSet("ImageNet-V2", 10_000, "Recht et al., ICML 2019, arXiv:1902.10811"),
    "a": EvalSet("ImageNet-A", 7_500, "Hendrycks et al., CVPR 2021, arXiv:1907.07174", "imagenet_a_synsets.txt"),
    "r": EvalSet("ImageNet-R", 30_000, "Hendrycks et al., ICCV 2021, arXiv:2006.16241", "imagenet_r_synsets.txt"),
    "sketch": EvalSet("ImageNet-Sketch", 50_889, "Wang et al., NeurIPS 2019, arXiv:1905.13549"),
}


def _path() -> Any:
    return field(default=None, metadata={"path": "as typed"})


@dataclass
class EvalSetsConfig:
    """Evaluation sets (``sets.*``): for each, the folder that holds its class folders, directly or in ``val/``.

    It may also hold the set's shards, tar files or zip file, as ``data.root`` does for the split ``val``.
    """

    # Validation images: in class folders, or all in one folder if ``labels`` is given.
    imagenet: str | None = _path()
    # File with the labels of images in one folder: one a line in the order of the image names, or "name label".
    labels: str | None = _path()
    real: str | None = _path()  # the validation images, scored with the labels of ReaL
    v2: str | None = _path()  # ImageNet-V2: 0/ to 999/
    a: str | None = _path()  # ImageNet-A: 200 class folders
    r: str | None = _path()  # ImageNet-R: 200 class folders
    sketch: str | None = _path()  # ImageNet-Sketch

    def folders(self) -> dict[str, str]:
        """The folder of each set that is wanted, in the order of ``SETS``."""
        return {name: folder for name in SETS if (folder := getattr(self, name)) is not None}


@dataclass(frozen=True)
class EvalImages:
    """Images with their right answers.

    Attributes:
        data: how they are read and cropped.
        source: the images.
        answers: int64 ``(n,)``, or ``(n, k)`` if an image may have several right answers; rows are filled up with -1.
            An image without any answer does not count.
        classes: int64, the classes a model chooses among; ``answers`` are then indices into this array. ``None``: all
            classes of the model.
    """

    data: DataConfig
    source: Source
    answers: NDArray[np.int64]
    classes: NDArray[np.int64] | None = None

    @property
    def index(self) -> ImageIndex:
        """The index of the images."""
        return self.source.index


def open_set(name: str, sets: EvalSetsConfig, data: DataConfig) -> EvalImages:
    """Open an evaluation set; its index is built if needed.

    Args:
        name: a key of ``SETS``.
        sets: where the sets are.
        data: how images are cropped and read.

    Raises:
        DataError: if the folder is missing or holds other classes, or the list of labels does not match the images.
    """
    described = SETS[name]
    place, data = _located(name, sets, data)
    if _is_flat(place, data):
        source, answers = _open_flat(name, place, sets.labels, data)
    else:
        if name == "imagenet" and sets.labels is not None:
            raise DataError(f"sets.labels is for images in one folder, but {place} has labels of its own: leave it out")
        if source_kind(data, data.split) is FolderSource:
            _refuse_other_classes(name, place, _subfolders(place))  # before any image is read
        images = open_split(data, data.split, IMAGENET_CLASSES)
        _refuse_other_classes(name, place, images.index.classes)
        source, answers = images.source, images.labels
    if described.by_name:
        answers = real_answers(source)
    classes = _class_labels(described)
    if len(classes) < IMAGENET_CLASSES:
        answers = np.searchsorted(classes, answers)
        return EvalImages(data, source, answers, classes)
    return EvalImages(data, source, answers)


def is_set_prepared(name: str, sets: EvalSetsConfig, data: DataConfig) -> bool:
    """Whether the set can be opened without indexing anything, because that is done already."""
    place, data = _located(name, sets, data)
    if _is_flat(place, data):
        return FolderSource.open(data, data.split, build=False, flat=True) is not None
    return is_prepared(data, [data.split])


def refuse_other_than_imagenet(num_classes: int | None, trained_on: Sequence[str] | None) -> None:
    """Raise if a model's classes are not ImageNet's in their usual order.

    Args:
        num_classes: number of classes of the model, if known.
        trained_on: names of the classes the model was trained on, if known.
    """
    usual = (list(wnids()), [str(label) for label in range(IMAGENET_CLASSES)])
    if num_classes not in (None, IMAGENET_CLASSES):
        raise DataError(f"the sets have ImageNet's {IMAGENET_CLASSES} classes, but the model has {num_classes} classes")
    if trained_on is not None and list(trained_on) not in usual:
        raise DataError(f"the sets have ImageNet's classes, but the model has other classes, such as '{trained_on[0]}'")


def _class_labels(described: EvalSet) -> NDArray[np.int64]:
    """The labels of a set's classes among ImageNet's, in increasing order."""
    label = {wnid: i for i, wnid in enumerate(wnids())}
    return np.sort(np.array([label[wnid] for wnid in wnids(described.classes)]))


def _open_flat(name: str, folder: Path, labels: str | None, data: DataConfig) -> tuple[Source, NDArray[np.int64]]:
    """Images in one folder and their labels from a list; ReaL needs no list and gets zeros here."""
    if name not in ("imagenet", "real"):
        raise DataError(f"sets.{name}: {folder} has no class folders: set sets.{name} to the folder that holds them")
    if name == "imagenet" and labels is None:
        raise DataError(
            f"sets.imagenet: {folder} has no class folders: add sets.labels=FILE, a list of the images' labels "
            "(each line a WordNet id or a number from 0 to 999, in the order of the images' names, or 'name label')"
        )
    listed = read_list(labels) if name == "imagenet" and labels is not None else None
    opened = FolderSource.open(data, data.split, flat=True)
    assert opened is not None
    source = accepted(opened, data)
    answers = np.zeros(len(source), dtype=np.int64) if listed is None else listed_answers(source, listed, str(labels))
    return source, answers


# --- places ---------------------------------------------------------------------------------------------------------


def _located(name: str, sets: EvalSetsConfig, data: DataConfig) -> tuple[Path, DataConfig]:
    """Where the set is, and the data options that open it as the split ``data.split``.

    The place is the folder that holds its class folders or images, or what a source reads as split ``val``.
    """
    typed, title = getattr(sets, name), SETS[name].title
    place = Path(os.path.abspath(os.path.expanduser(typed)))
    data = replace(data, name=title, archive=None)
    if _is_root(place, data):
        return place, replace(data, root=str(place), split="val")
    if not place.is_dir():
        raise DataError(f"sets.{name}={typed} is not a folder: set it to the folder that holds {title}")
    if (place / "val").is_dir():
        place = place / "val"
        if _is_root(place, data):
            return place, replace(data, root=str(place), split="val")
    return place, replace(data, root=str(place.parent), split=place.name)


def _is_root(place: Path, data: DataConfig) -> bool:
    """Whether the place serves as ``data.root``.

    Then it has no folders but those of the splits, and ``val`` is in shards, tar files or a zip file.
    """
    if place.is_dir() and set(_subfolders(place)) - {data.train_split, "val"}:
        return False
    return source_kind(replace(data, root=str(place)), "val") is not FolderSource


def _subfolders(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise unreadable_folder(error) from error


def _is_flat(place: Path, data: DataConfig) -> bool:
    """Whether the images are all in one folder, which has no class folders."""
    return source_kind(data, data.split) is FolderSource and not _subfolders(place)


def _refuse_other_classes(name: str, folder: Path, found: Sequence[str]) -> None:
    """Raise if a class folder is not named as one of the set's classes."""
    described = SETS[name]
    known = wnids(described.classes)
    numbers = len(known) == IMAGENET_CLASSES and are_integers(found)
    unknown = [f for f in found if (int(f) >= IMAGENET_CLASSES if numbers else f not in known)]
    if unknown:
        kind = f"WordNet ids{' or 0 to 999' if len(known) == IMAGENET_CLASSES else ''}"
        raise DataError(
            f"sets.{name}: folder '{unknown[0]}' in {folder} is not one of the {len(known)} classes of "
            f"{described.title}: set sets.{name} to the folder that holds its class folders ({kind})"
        )
