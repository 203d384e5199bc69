"""From the data options to images with labels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.config import DataConfig
from data.index import ImageIndex
from data.labels import class_labels, label_space
from data.sources import Source, open_source


@dataclass(frozen=True)
class ImageSet:
    """The images of one split and their labels.

    Attributes:
        source: the images.
        labels: int64, one for each row of the index.
        names: name of the class folder of each label that occurs.
        num_classes: labels there are, of which only some may occur.
    """

    source: Source
    labels: NDArray[np.int64]
    names: dict[int, str]
    num_classes: int

    @property
    def index(self) -> ImageIndex:
        """Which images they are."""
        return self.source.index

    def __len__(self) -> int:
        return len(self.source)


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
        DataError: as :func:`data.sources.open_source` and :func:`data.labels.class_labels` say.
    """
    source = open_source(cfg, split)
    assert source is not None
    classes, targets = source.index.classes, source.index.targets
    labels = class_labels(classes, num_classes, trained_on)
    names = {int(label): name for label, name in zip(labels, classes, strict=True)}
    return ImageSet(source, labels[targets], names, num_classes or label_space(classes, labels))


def is_prepared(cfg: DataConfig, splits: Sequence[str]) -> bool:
    """Whether opening the splits would neither unpack nor index anything: another process has done it."""
    return all(open_source(cfg, split, build=False) is not None for split in splits)
