"""The folder that a split is written to: what it is for, that nobody else writes there, and whether there is room."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data.errors import DataError
from data.prepare.sources import ClassSource, Split
from data.shards import MOST_SHARDS, shard_name


def cut(sizes: list[int], shard_size: int) -> list[range]:
    """The classes of each shard: as many whole ones as fit, at least one.

    Raises:
        DataError: if there would be too many shards.
    """
    starts, filled = [0], 0
    for place, size in enumerate(sizes):
        if filled and filled + size > shard_size:
            starts.append(place)
            filled = 0
        filled += size
    if len(starts) > MOST_SHARDS:
        raise DataError(
            f"--shard-size {shard_size} makes {len(starts)} shards, more than {MOST_SHARDS}: "
            f"set {2 * sum(sizes) // MOST_SHARDS} or more"
        )
    return [range(a, b) for a, b in zip(starts, [*starts[1:], len(sizes)], strict=True)]


def parts(folder: Path, split: Split, shards: list[range] | None) -> list[tuple[Path, list[ClassSource]]]:
    """What a split will consist of, its shards or its class folders, with the classes in each."""
    if shards is None:
        return [(folder / source.name, [source]) for source in split.classes]
    return [(folder / shard_name(number), [split.classes[i] for i in shard]) for number, shard in enumerate(shards)]


def plan_file(folder: Path) -> Path:
    """The note of what a split's folder is made from and how."""
    return folder.with_name(f"prepared-{folder.name}.json")


def plan_of(split: Split, shards: list[range] | None, shorter_side: int | None) -> dict[str, Any]:
    """The note of a split: all that its bytes depend on."""
    source = json.dumps([(source.name, source.size) for source in split.classes])
    return {
        "source": hashlib.sha256(source.encode("utf-8", "surrogateescape")).hexdigest()[:16],
        "classes": len(split.classes),
        "shards": len(shards) if shards is not None else None,
        "cut": hashlib.sha256(str(shards).encode()).hexdigest()[:16],
        "shorter_side": shorter_side,
    }


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Make a folder and keep other processes from working there too."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise DataError(f"cannot write {folder} ({error.strerror}): choose another --to") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DataError(f"another process is preparing {folder}: wait for its end") from error
    except OSError:
        pass  # a file system without locks
    try:
        yield
    finally:
        os.close(descriptor)


def agree_on(folder: Path, plan: dict[str, Any]) -> None:
    """Note the plan of a split, or compare it with the one noted: half of each would be neither.

    Raises:
        DataError: if they differ, or the folder holds other files.
    """
    path, text = plan_file(folder), json.dumps(plan) + "\n"
    try:
        if path.is_file():
            if path.read_text() != text:
                raise DataError(
                    f"{folder} was begun from another source or with another --layout, --shorter-side or "
                    f"--shard-size: repeat that command, choose another --to, or remove {folder} and {path}"
                )
        elif any(folder.iterdir()):
            raise DataError(f"{folder} holds files that this command has not written: choose another --to")
        else:
            scratch = path.with_name(f".{path.name}.tmp")
            scratch.write_text(text)
            scratch.rename(path)
    except OSError as error:
        raise DataError(f"cannot write {path} ({error.strerror}): choose another --to") from error


def refuse_full(folder: Path, wanted: list[tuple[Path, list[ClassSource]]]) -> None:
    """Raise where what is still to be written would not fit."""
    needed = sum(source.size for path, sources in wanted if not path.exists() for source in sources)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{folder.name} needs {needed / 1e9:.1f} GB more in {folder}, where {free / 1e9:.1f} GB are free: "
            "make room or choose another --to"
        )
