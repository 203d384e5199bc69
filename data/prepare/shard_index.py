"""The index of a split's shards, read from the shards themselves."""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from data.errors import DataError, in_one_line
from data.index import ImageIndex
from data.index.arrays import write_arrays
from data.index.headers import Header, read_header_at
from data.index.rows import Rows, joined_index
from data.index.tars import members
from data.prepare.target import plan_file
from data.sources.byte_ranges import shard_columns
from data.sources.shards import PACKED_INDEX, PATTERN, REMEDY, shard_name


def read_shard(path: Path) -> Rows:
    """The images in a shard in their order; ``bad`` names the files that are no readable images.

    Raises:
        DataError: if it is damaged.
    """
    paths, headers, bad, classes = [], [], [], []
    with open(path, "rb") as file:
        for info in members(path, remedy=REMEDY):
            header = read_header_at(file.fileno(), info.offset_data, info.size)
            classes.append(info.name.split("/")[0])
            if isinstance(header, Header):
                paths.append(info.name)
                headers.append(header)
            else:
                bad.append(f"{path.parent.name}/{path.name}: {info.name} {header}")
    return Rows.of(paths, [name.split("/")[0] for name in paths], headers, bad, classes)


def shards_in(folder: Path) -> list[Path]:
    """The shards in a split's folder, in their order.

    Raises:
        DataError: if some are missing, or the plan beside the folder is damaged.
    """
    found = sorted(folder.glob(PATTERN))
    plan = plan_file(folder)
    try:
        count = json.loads(plan.read_text(encoding="utf-8"))["shards"] if found and plan.is_file() else len(found)
        expected = [shard_name(number) for number in range(count or 0)]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{plan} is damaged ({in_one_line(error)}): copy it again, or delete it if all shards are there"
        ) from error
    if [path.name for path in found] != expected:
        raise DataError(f"{folder} does not hold all of its shards: repeat the command that wrote them")
    return found


def write_packed_index(folder: Path, shards: Sequence[Rows]) -> None:
    """Write the index of a split's shards, given in their order, beside them.

    Raises:
        DataError: if it cannot be written, or the shards do not belong together.
    """
    path = folder / PACKED_INDEX
    try:
        write_arrays(path, _packed_index(folder, shards).arrays())
    except OSError as error:
        raise DataError(f"cannot write {path} ({error.strerror}): free space, and try again") from error


def _packed_index(folder: Path, shards: Sequence[Rows]) -> ImageIndex:
    """The index of a split's shards, given in their order.

    Raises:
        DataError: if the classes are not sorted by name, or a class is in several shards.
    """
    classes = [name for shard in shards for name in shard.classes]
    if classes != sorted(set(classes)):
        raise DataError(f"the shards in {folder} do not belong together: pack the images again")
    places = shard_columns(
        sizes=np.array([os.stat(folder / shard_name(number)).st_size for number in range(len(shards))], dtype=np.int64),
        numbers=np.repeat(np.arange(len(shards), dtype=np.int32), [len(shard) for shard in shards]),
        offsets=np.concatenate([shard.offsets for shard in shards]),
    )
    return replace(joined_index(shards), extra=places)
