"""From names of class folders to the labels a model predicts."""

from collections.abc import Sequence
from functools import cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray
from timm.data import ImageNetInfo

from data.errors import DataError

IMAGENET_CLASSES = 1000


def class_labels(
    classes: Sequence[str], num_classes: int | None = None, trained_on: Sequence[str] | None = None
) -> NDArray[np.int64]:
    """The label of each class folder.

    Folders named as the classes a model was trained on get that model's labels (folders that are all integers may
    stand for labels instead of names). Otherwise folders that are all
    ImageNet WordNet ids get their ILSVRC index, folders that are all integers that integer, any others their sorted
    order; folders that match ``num_classes`` one by one without being all of ImageNet are taken in sorted order too.

    Args:
        classes: names of the class folders, sorted.
        num_classes: classes of the model, where known.
        trained_on: names of the classes the model was trained on, where known.

    Raises:
        DataError: if a folder has no label in the model.
    """
    if trained_on is not None and not (all(map(str.isdecimal, classes)) and set(classes).isdisjoint(trained_on)):
        known = {name: label for label, name in enumerate(trained_on)}
        if unknown := [name for name in classes if name not in known]:
            raise DataError(f"class folder '{unknown[0]}' is none of the {len(known)} classes the model was trained on")
        return np.array([known[name] for name in classes])
    labels = _by_name(classes, num_classes)
    if len(set(labels.tolist())) != len(classes):
        raise DataError("two class folders mean the same label (such as 1 and 01): rename or merge them")
    if num_classes is not None and (labels.max() >= num_classes or labels.min() < 0):
        name = classes[int(labels.argmax())]
        raise DataError(f"class folder '{name}' has label {labels.max()}, but the model has {num_classes} classes")
    return labels


def _by_name(classes: Sequence[str], num_classes: int | None) -> NDArray[np.int64]:
    if num_classes == len(classes) != IMAGENET_CLASSES and not all(map(str.isdecimal, classes)):
        return np.arange(len(classes))
    imagenet = ImageNetInfo().label_names()
    position = {wnid: label for label, wnid in enumerate(imagenet)}
    if all(name in position for name in classes):
        return np.array([position[name] for name in classes])
    if all(map(str.isdecimal, classes)):
        return np.array([int(name) for name in classes])
    return np.arange(len(classes))


def label_space(classes: Sequence[str], labels: NDArray[np.int64]) -> int:
    """How many labels there are where the folders may be a part of them: all of ImageNet's, or up to the largest."""
    return IMAGENET_CLASSES if set(classes) <= set(ImageNetInfo().label_names()) else int(labels.max()) + 1


def refuse_different_classes(train: Sequence[str], val: Sequence[str]) -> None:
    """Raise where the training and validation folders do not hold the same classes."""
    only_train, only_val = sorted(set(train) - set(val)), sorted(set(val) - set(train))
    if only_train or only_val:
        where, names = ("training", only_train) if only_train else ("validation", only_val)
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise DataError(
            f"the training and validation classes differ: '{names[0]}'{more} only in the {where} folder: "
            "make the class folders of both the same"
        )


@cache
def wnids(file: str = "imagenet_synsets.txt") -> tuple[str, ...]:
    """The WordNet ids in a file of timm's metadata; by default of ImageNet's classes, in the order of their labels."""
    return tuple(timm_metadata(file).split())


def timm_metadata(file: str) -> str:
    """The content of a file that timm keeps about ImageNet and its relatives."""
    return (resources.files("timm.data") / "_info" / file).read_text(encoding="utf-8")
