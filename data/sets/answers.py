"""Right answers that do not follow from class folders: lists of labels, and the labels of ReaL."""

import json
import os
import re
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.errors import DataError, in_one_line
from data.sets.labels import IMAGENET_CLASSES, are_integers, timm_metadata, wnids
from data.sources import Source

NO_ANSWER = -1
VAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.")


def real_answers(source: Source) -> NDArray[np.int64]:
    """The ReaL labels of each image, ``(n, k)``, found by the number in the name of a validation image."""
    real: list[list[int]] = json.loads(timm_metadata("imagenet_real_labels.json"))
    answers = np.full((len(source), max(map(len, real))), NO_ANSWER, dtype=np.int64)
    for row, path in enumerate(source.index.paths):
        match = VAL_NAME.search(path)
        if match is None or not 1 <= int(match[1]) <= len(real):
            raise DataError(
                f"sets.real: {source.name(row)} is not named like an ImageNet validation image "
                f"(ILSVRC2012_val_00000001.JPEG to {len(real):08d}): keep the original names, "
                "because ReaL finds its labels by name"
            )
        right = real[int(match[1]) - 1]
        answers[row, : len(right)] = right
    if (answers == NO_ANSWER).all():
        raise DataError(f"sets.real: ReaL has no label for any image in {source.place}")
    return answers


def read_list(file: str) -> list[list[str]]:
    """The words of each line that is not blank: one or two, the same number on every line."""
    try:
        lines = [
            line.split()
            for line in Path(os.path.expanduser(file)).read_text(encoding="utf-8").splitlines()
            if line.strip()
        ]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"sets.labels={file} cannot be read ({in_one_line(error)})") from error
    if {len(words) for words in lines} not in ({1}, {2}):
        raise DataError(f"sets.labels={file}: write one label on each line, or 'name label' on each line")
    return lines


def listed_answers(source: Source, lines: list[list[str]], file: str) -> NDArray[np.int64]:
    """The label of each image, from the lines of a list.

    A line with one word belongs to the image at the same place in the order of names. A line with two words names its
    image.

    Raises:
        DataError: if there are more or fewer lines than images, an image has no label, or a label is unknown.
    """
    if len(lines[0]) == 1:
        if len(lines) != len(source):
            raise DataError(f"sets.labels={file} has {len(lines)} lines for {len(source)} images in {source.place}")
        return np.array([_label(words[0], file) for words in lines])
    by_name = {os.path.basename(name): label for name, label in lines}
    names = [os.path.basename(path) for path in source.index.paths]
    if missing := [name for name in names if name not in by_name]:
        raise DataError(f"sets.labels={file} has no label for {missing[0]}")
    return np.array([_label(by_name[name], file) for name in names])


@cache
def _label(word: str, file: str) -> int:
    known = wnids()
    if word in known:
        return known.index(word)
    if not are_integers([word]):
        raise DataError(f"sets.labels={file}: '{word}' is not a WordNet id of ImageNet or a number from 0 to 999")
    if int(word) >= IMAGENET_CLASSES:
        raise DataError(
            f"sets.labels={file}: label {word} is more than 999. The numbers 1 to 1000 of ImageNet's development kit "
            "are in another order than the classes of models: use WordNet ids instead"
        )
    return int(word)
