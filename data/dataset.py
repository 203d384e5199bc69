"""From the data options to images with labels."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.cache import folder_of, is_whole, unpacked
from data.config import DataConfig
from data.errors import DataError
from data.index import ImageIndex, load_index, synthetic_index
from data.labels import class_labels, label_space

PROJECT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class ImageSet:
    """The images of one split and their labels.

    Attributes:
        index: the images.
        labels: int64, one for each row of the index.
        names: name of the class folder of each label that occurs.
        num_classes: labels there are, of which only some may occur.
    """

    index: ImageIndex
    labels: NDArray[np.int64]
    names: dict[int, str]
    num_classes: int

    def __len__(self) -> int:
        return len(self.index)


def find_root(cfg: DataConfig) -> Path:
    """The folder of the data set; an archive is unpacked.

    Raises:
        DataError: if there is none.
    """
    if cfg.root is not None:
        root = Path(os.path.expanduser(cfg.root))
    elif cfg.archive is not None:
        root = unpacked(*_archive(cfg))
    else:
        hint = " or the environment variable IMAGENET_DIR" if cfg.name == "imagenet" else ""
        raise DataError(
            f"no images for data={cfg.name}: set data.root=/path/to/images{hint} (a folder that holds "
            f"{cfg.train_split}/<class>/ and {cfg.split}/<class>/); to try without any, use experiment=quickstart"
        )
    if not root.is_dir():
        raise DataError(f"data.root={root} is no folder: set it to one that holds {cfg.split}/<class>/")
    return root


def _archive(cfg: DataConfig) -> tuple[Path, str]:
    """The file of ``data.archive`` and its digest."""
    return PROJECT / str(cfg.archive), cfg.archive_sha256 or ""


def open_split(
    cfg: DataConfig,
    split: str,
    num_classes: int | None = None,
    trained_on: Sequence[str] | None = None,
) -> ImageSet:
    """The images of a split with their labels; the index is built where needed.

    Args:
        cfg: the data set.
        split: ``cfg.train_split`` or ``cfg.split``.
        num_classes: classes of the model, where known.
        trained_on: names of the classes the model was trained on, where known.

    Raises:
        DataError: as :func:`data.index.load_index` and :func:`data.labels.class_labels` say.
    """
    index = _index(cfg, split)
    labels = class_labels(index.classes, num_classes, trained_on)
    names = {int(label): name for label, name in zip(labels, index.classes, strict=True)}
    return ImageSet(index, labels[index.targets], names, num_classes or label_space(index.classes, labels))


def _index(cfg: DataConfig, split: str) -> ImageIndex:
    if cfg.name == "synthetic":
        count = cfg.synthetic_images if split == cfg.train_split else max(1, cfg.synthetic_images // 40)
        return synthetic_index(count, cfg.synthetic_classes, cfg.crop)
    index = load_index(find_root(cfg), split, cfg.index_dir, cfg.on_bad_image)
    assert index is not None
    return index


def is_prepared(cfg: DataConfig, splits: Sequence[str]) -> bool:
    """Whether opening the splits would neither unpack nor index anything: another process has done it."""
    if cfg.name == "synthetic":
        return True
    if cfg.root is None and cfg.archive is not None and not is_whole(folder_of(*_archive(cfg))):
        return False
    root = find_root(cfg)
    return all(load_index(root, split, cfg.index_dir, cfg.on_bad_image, build=False) is not None for split in splits)
