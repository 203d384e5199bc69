"""Which of many numbered files, such as ``train-00000-of-00294.tar``, belong to a split, and whether all are there.

Only names are read.
"""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from data.errors import DataError

NUMBERED = r"(?P<prefix>.*?)(?P<number>\d+)(?:-of-(?P<of>\d+))?"
# The official tar files and those of their classes, our own shards, and hidden files.
NOT_ONE_OF_A_SET = re.compile(r"ILSVRC2012_img_.*|n\d{8}\.tar|shard-\d{5}\.tar|\..*")
OTHER_NAMES = {"val": "validation"}
INFO = ("_info.json", "info.json")  # beside the tar files of timm's sets: the names of all of them


class Numbered(NamedTuple):
    """A file with a number in its name. They sort by prefix and number."""

    prefix: str  # of all files of a set
    number: int
    of: str  # how many there are, if its name says so; otherwise empty
    file: Path


def file_set(root: Path, split: str, suffix: str) -> tuple[Path, list[Path]] | None:
    """The folder with the files of a split, and these files, sorted; ``None`` if there are none.

    They are in ``root/<split>/``. If that folder is missing or empty, they are in ``root`` or ``root/data``, with the
    name of the split as a part of their own names. The split "val" may be named "validation", too.

    Args:
        root: the folder of the data set.
        split: name of the split.
        suffix: how the names end, such as ``.tar``.
    """
    names = {split, OTHER_NAMES.get(split, split)}
    for folder in (root / name for name in sorted(names)):
        if found := _files(folder, suffix):
            return folder, found
        if holds_something(folder):
            return None
    for folder in (root, root / "data"):
        if found := [file for file in _files(folder, suffix) if not names.isdisjoint(re.split(r"[-_.]", file.name))]:
            return folder, found
    return None


def holds_something(folder: Path) -> bool:
    """Whether a folder holds a file or folder that is not hidden."""
    return folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())


def _files(folder: Path, suffix: str) -> list[Path]:
    return sorted(file for file in folder.glob(f"*{suffix}") if not NOT_ONE_OF_A_SET.fullmatch(file.name))


def complete_set(root: Path, split: str, suffix: str) -> list[Path]:
    """The files of a split in the order of their numbers; see :func:`file_set`.

    Raises:
        DataError: if some are missing or half downloaded, or if they are not one set.
    """
    place = file_set(root, split, suffix)
    assert place is not None, "there are such files"
    folder, files = place
    if partial := sorted(folder.glob(f"*{suffix}.incomplete")):
        raise DataError(f"{partial[0]} is half downloaded: finish the download, or remove the file")
    _refuse_missing(folder, _listed(folder, split), files)
    if len(files) == 1 and "-of-" not in files[0].name:
        return files
    matches = [(re.fullmatch(NUMBERED + re.escape(suffix), file.name), file) for file in files]
    if strange := [file for match, file in matches if match is None]:
        raise DataError(f"{strange[0]} has no number, but there are other {suffix} files of {split}: keep one set")
    numbered = sorted(
        Numbered(match["prefix"], int(match["number"]), match["of"] or "", file) for match, file in matches if match
    )
    first, last = numbered[0], numbered[-1]
    if first.prefix != last.prefix:
        sets = f"{first.prefix}* and {last.prefix}*"
        raise DataError(f"{folder} holds two sets of {suffix} files, {sets}: keep one of them there")
    for a, b in pairwise(numbered):
        if a.number == b.number:
            raise DataError(f"{a.file} and {b.file.name} have the same number: keep one of them")
    _refuse_gap(folder, split, suffix, [each.number for each in numbered], first.of)
    return [each.file for each in numbered]


def _refuse_gap(folder: Path, split: str, suffix: str, numbers: list[int], of: str) -> None:
    """Raise if a number is missing: ``numbers`` are sorted, and ``of`` is the count in the names, or empty."""
    if of:
        count, least = int(of), int(numbers[-1] == int(of))  # some count from 1
    else:
        least = min(numbers[0], 1)
        count = numbers[-1] + 1 - least
    present = set(numbers)
    if (missing := next((n for n in range(least, least + count) if n not in present), None)) is not None:
        raise DataError(f"{folder}: number {missing} of the {count} {suffix} files of {split} is missing: get it")


def _listed(folder: Path, split: str) -> list[str]:
    """The names of all files of a split that a list beside them gives; none if there is no list."""
    for path in (folder / name for name in INFO):
        if path.is_file():
            try:
                splits = json.loads(path.read_text(encoding="utf-8")).get("splits", {})
                described = splits.get(split) or splits.get(OTHER_NAMES.get(split, split)) or {"filenames": []}
                return [str(name) for name in described["filenames"]]
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise DataError(f"{path} is no list of tar files ({error}): get it again, or remove it") from error
    return []


def _refuse_missing(folder: Path, listed: list[str], files: list[Path]) -> None:
    found = {file.name for file in files}
    if missing := [name for name in listed if name not in found]:
        raise DataError(
            f"{len(missing)} of the {len(listed)} files of {folder} are missing, such as {missing[0]}: get them"
        )
