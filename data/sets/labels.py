"""From names of class folders to the labels a model predicts."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray
from timm.data import ImageNetInfo, infer_imagenet_subset

from data.errors import DataError

log = logging.getLogger(__name__)

IMAGENET_CLASSES = 1000
IMAGENET = "imagenet-1k"  # timm's name for it
MOST_DIGITS = 255  # as the name of a folder may have; Python refuses to convert thousands


def class_labels(
    classes: Sequence[str], num_classes: int | None = None, trained_on: Sequence[str] | None = None
) -> NDArray[np.int64]:
    """The label of each class folder.

    With ``trained_on``, a folder gets the label of the model's class of the same name; integers are compared by value.
    If the model's classes are not integers, integer folders are the labels themselves, unless one is a class name.

    Without ``trained_on``:

    - Integers are the labels themselves if they are 0 to n - 1, or if the model has more classes than there are
      folders. Otherwise the labels are their places in numeric order.
    - Other names get their places in sorted order if the model has as many classes as there are folders, but not 1000.
    - Otherwise WordNet ids of ImageNet get their ILSVRC index, or their place in the variant of ImageNet (such as
      ImageNet-21k) that has as many classes as the model.
    - All remaining names get their places in sorted order.

    Args:
        classes: names of the class folders, sorted.
        num_classes: number of classes of the model, if known.
        trained_on: names of the classes the model was trained on, if known.

    Raises:
        DataError: if a folder has no label in the model.
    """
    if trained_on is not None:
        by_value = are_integers(trained_on) and are_integers(classes)
        if by_value or not (are_integers(classes) and set(classes).isdisjoint(trained_on)):
            return _by_training(classes, trained_on, int if by_value else str)
    labels = _by_name(classes, num_classes, trained_on is None)
    if len(set(labels.tolist())) != len(classes):
        raise DataError("two class folders mean the same label (such as 1 and 01): rename or merge them")
    if num_classes is not None and (labels.max() >= num_classes or labels.min() < 0):
        name = classes[int(labels.argmax())]
        raise DataError(f"class '{name}' has label {labels.max()}, but the model has {num_classes} classes")
    _refuse_unknown_order(classes, num_classes)
    return labels


def are_integers(names: Iterable[str]) -> bool:
    """Whether all names are whole numbers. An archive may hold names of any length, and endless ones are none."""
    return all(name.isdecimal() and len(name) <= MOST_DIGITS for name in names)


def _by_training(
    classes: Sequence[str], trained_on: Sequence[str], meaning: Callable[[str], object]
) -> NDArray[np.int64]:
    """The label that each class has in the model. Two names are the same class if ``meaning`` is equal for both."""
    known = {meaning(name): label for label, name in enumerate(trained_on)}
    if unknown := [name for name in classes if meaning(name) not in known]:
        raise DataError(f"class '{unknown[0]}' is not one of the {len(known)} classes the model was trained on")
    return np.array([known[meaning(name)] for name in classes])


def _by_name(classes: Sequence[str], num_classes: int | None, may_rank: bool) -> NDArray[np.int64]:
    if are_integers(classes):
        return _by_value(classes, num_classes, may_rank)
    if num_classes == len(classes) != IMAGENET_CLASSES:
        return np.arange(len(classes))
    subset = infer_imagenet_subset({"num_classes": num_classes}) or IMAGENET
    position = _places_in(subset)
    if all(name in position for name in classes):
        if subset != IMAGENET:
            _say_once(f"the model has {num_classes} classes: class folders get the labels of timm's {subset}")
        return np.array([position[name] for name in classes])
    strangers = [name for name in classes if name not in position]
    if subset != IMAGENET and len(strangers) < len(classes):
        raise DataError(
            f"class '{strangers[0]}' is not one of the {num_classes} classes of timm's {subset}: leave it out"
        )
    return np.arange(len(classes))


@cache  # timm reads a file each time
def _places_in(subset: str) -> dict[str, int]:
    """The label of each WordNet id in ImageNet or a variant of it; ``subset`` is timm's name of it."""
    return {wnid: label for label, wnid in enumerate(ImageNetInfo(subset).label_names())}


def _refuse_unknown_order(classes: Sequence[str], num_classes: int | None) -> None:
    """Raise if the WordNet ids are only a part of the model's classes, and the order of these is unknown."""
    if num_classes in (None, len(classes)) or infer_imagenet_subset({"num_classes": num_classes}) is not None:
        return
    if all(name in _places_in(IMAGENET) for name in classes):
        raise DataError(
            f"the {len(classes)} class folders are WordNet ids, but the order of the model's {num_classes} classes is "
            f"unknown: rename the folders to their labels, or set model.num_classes={len(classes)}"
        )


def _by_value(classes: Sequence[str], num_classes: int | None, may_rank: bool) -> NDArray[np.int64]:
    """The integers themselves, or their places in numeric order; :func:`class_labels` says when."""
    values = np.array([int(name) for name in classes])
    ranks = np.searchsorted(np.unique(values), values)
    fits = num_classes in (None, len(classes)) and len(set(ranks.tolist())) == len(classes)
    if not (may_rank and fits) or np.array_equal(ranks, values):
        return values
    _say_once(
        f"class folders {values.min()} … {values.max()} are not 0 to {len(classes) - 1}: "
        "their labels are 0, 1, 2 and so on, in numeric order"
    )
    return ranks


@cache
def _say_once(message: str) -> None:
    """Log a message only once: both splits have the same classes, and each is opened more than once."""
    log.info("%s", message)


def label_space(classes: Sequence[str], labels: NDArray[np.int64]) -> int:
    """The number of labels, including those without a folder: ImageNet's 1000, or up to the largest label."""
    return IMAGENET_CLASSES if set(classes) <= _places_in(IMAGENET).keys() else int(labels.max()) + 1


def refuse_different_classes(train: Sequence[str], val: Sequence[str]) -> None:
    """Raise if the training and validation folders do not hold the same classes."""
    only_train, only_val = sorted(set(train) - set(val)), sorted(set(val) - set(train))
    if only_train or only_val:
        where, names = ("training", only_train) if only_train else ("validation", only_val)
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise DataError(
            f"the training and validation classes differ: '{names[0]}'{more} only in the {where} folder: "
            "make the class folders of both splits the same"
        )


def class_names(num_classes: int, folders: Mapping[int, str]) -> list[str]:
    """The name of each class of a model that does not say them itself.

    Args:
        num_classes: number of classes of the model.
        folders: the class folder of each label, as far as there are some.

    Returns:
        The WordNet ids of ImageNet, or of its variant with so many classes, unless a folder has another name. Otherwise
        the names of the folders, and the numbers of all other classes.
    """
    subset = infer_imagenet_subset({"num_classes": num_classes})
    known = ImageNetInfo(subset).label_names() if subset is not None else []
    if known and all(known[label] == name for label, name in folders.items()):
        return list(known)
    return [folders.get(label, str(label)) for label in range(num_classes)]


@cache
def wnids(file: str = "imagenet_synsets.txt") -> tuple[str, ...]:
    """The WordNet ids in a file of timm's metadata. The default is ImageNet's classes in the order of their labels."""
    return tuple(timm_metadata(file).split())


def timm_metadata(file: str) -> str:
    """The content of a file of timm's metadata about ImageNet and its variants."""
    return (resources.files("timm.data") / "_info" / file).read_text(encoding="utf-8")
