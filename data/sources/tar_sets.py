"""Which tar files belong to a split, and whether they are all there. Only names are read."""

import json
import re
from itertools import pairwise
from pathlib import Path

from data.errors import DataError

NUMBERED = re.compile(r"(?P<set>.*?)(?P<number>\d+)(?:-of-(?P<count>\d+))?\.tar")
OURS = re.compile(r"shard-\d{5}\.tar")  # see data/sources/shards.py
OTHER_NAMES = {"val": "validation"}
INFO = ("_info.json", "info.json")  # beside the tar files of timm's sets: the names of all of them


def tar_place(root: Path, split: str) -> tuple[Path, list[Path]] | None:
    """The folder with the tar files of a split, and these files, sorted; ``None`` if there are none.

    They are in ``root/<split>/``, or in ``root`` itself with the name of the split as a part of their own names.
    The split "val" may be named "validation", too.
    """
    names = [split, *([OTHER_NAMES[split]] if split in OTHER_NAMES else [])]
    for name in names:
        if found := _tars(root / name):
            return root / name, found
    found = [tar for tar in _tars(root) if not set(names).isdisjoint(re.split(r"[-_.]", tar.name))]
    return (root, found) if found else None


def _tars(folder: Path) -> list[Path]:
    official = "ILSVRC2012_img_"  # these hold class folders or tar files, and are prepared first
    found = [tar for tar in folder.glob("*.tar") if not (tar.name.startswith(official) or OURS.fullmatch(tar.name))]
    return sorted(tar for tar in found if not tar.name.startswith("."))


def numbered_tars(root: Path, split: str) -> list[Path]:
    """The tar files of a split in the order of their numbers.

    Raises:
        DataError: if some are missing or half downloaded, or if they are not one set.
    """
    place = tar_place(root, split)
    assert place is not None, "a split that fits has tar files"
    folder, tars = place
    again = "download it again"
    if partial := sorted(folder.glob("*.tar.incomplete")):
        raise DataError(f"{partial[0]} is half downloaded: finish the download, or remove it and {again}")
    _refuse_missing(folder, _listed(folder, split), tars)
    if len(tars) == 1:
        return tars
    matches = [(NUMBERED.fullmatch(tar.name), tar) for tar in tars]
    if strange := [tar.name for match, tar in matches if match is None]:
        raise DataError(f"{folder / strange[0]} has no number, but there are other tar files of {split}: keep one set")
    numbered = sorted((match["set"], int(match["number"]), match["count"], tar) for match, tar in matches if match)
    if (first := numbered[0][0]) != (last := numbered[-1][0]):
        raise DataError(f"{folder} holds two sets of tar files, {first}* and {last}*: keep one of them there")
    least = min(numbered[0][1], 1)
    count = int(numbered[0][2]) if numbered[0][2] else numbered[-1][1] + 1 - least
    found = [number for _, number, _, _ in numbered]
    if len(set(found)) < len(found):
        twice = next(b for a, b in pairwise(numbered) if a[1] == b[1])
        raise DataError(f"{twice[3]} has the number of another tar file there: keep one of them")
    if missing := sorted(set(range(least, least + count)) - set(found)):
        raise DataError(f"{folder}: the {split} tar file number {missing[0]} of {count} is missing: {again}")
    return [tar for *_, tar in numbered]


def _listed(folder: Path, split: str) -> list[str]:
    """The names of all tar files of a split that a list beside them gives; none if there is no list."""
    for path in (folder / name for name in INFO):
        if path.is_file():
            try:
                splits = json.loads(path.read_text(encoding="utf-8"))["splits"]
                described = splits.get(split) or splits.get(OTHER_NAMES.get(split, split)) or {"filenames": []}
                return [str(name) for name in described["filenames"]]
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(f"{path} is no list of tar files ({error}): download it again, or remove it") from error
    return []


def _refuse_missing(folder: Path, listed: list[str], tars: list[Path]) -> None:
    found = {tar.name for tar in tars}
    if missing := [name for name in listed if name not in found]:
        raise DataError(
            f"{len(missing)} of {len(listed)} tar files of {folder} are missing, such as {missing[0]}: download them"
        )
