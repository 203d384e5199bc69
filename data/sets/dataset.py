"""Opens a split: from the data options to images with labels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.config import DataConfig
from data.index import ImageIndex
from data.sets.labels import class_labels, label_space
from data.sources import Source, open_source


@dataclass(frozen=True)
class ImageSet:
    """The images of one split and their labels.

    Attributes:
        source: the images.
        labels: int64, one for each row of the index.
        names: name of the class folder of each label that occurs.
        num_classes: number of labels; some of them may not occur.
    """

    source: Source
    labels: NDArray[np.int64]
    names: dict[int, str]
    num_classes: int

    @property
    def index(self) -> ImageIndex:
        """The index of the images."""
        return self.source.index

    def __len__(self) -> int:
        return len(self.source)


def open_split(
    cfg: DataConfig,
    split: str,
    num_classes: int | None = None,
    trained_on: Sequence[str] | None = None,
    says: bool = True,
) -> ImageSet:
    """The images of a split with their labels; the index is built if needed.

    Args:
        cfg: the data set.
        split: ``cfg.train_split`` or ``cfg.split``.
        num_classes: number of classes of the model, if known.
        trained_on: names of the classes the model was trained on, if known.
        says: whether the log says how many files are left out; not where the split is only prepared.

    Raises:
        DataError: see :func:`data.sources.open_source` and :func:`data.sets.labels.class_labels`.
    """
    source = open_source(cfg, split, says=says)
    assert source is not None
    classes, targets = source.index.classes, source.index.targets
    labels = class_labels(classes, num_classes, trained_on)
    names = {int(label): name for label, name in zip(labels, classes, strict=True)}
    return ImageSet(source, labels[targets], names, num_classes or label_space(classes, labels))


def is_prepared(cfg: DataConfig, splits: Sequence[str]) -> bool:
    """Whether the splits can be opened without unpacking or indexing anything, because that is done already."""
    return all(open_source(cfg, split, build=False) is not None for split in splits)
