"""The files in which Weights & Biases keeps a run: read the rows that they hold, and cut them back to a checkpoint."""

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 32768  # a .wandb file is a LevelDB log: 7 bytes, then blocks of parts, each with a header of 7 bytes
HEADER = struct.Struct("<IHB")  # checksum, length, kind
WHOLE, FIRST, LAST = 1, 2, 4  # kinds of parts: a whole record, its first part, its last part


def files_of(folder: Path, run_id: str) -> list[Path]:
    """Return the files of a W&B run. Each start of the service writes another one.

    Args:
        folder: the run's folder ``wandb/``.
        run_id: the id of the W&B run.
    """
    return sorted(folder.glob(f"*run-*/run-{run_id}.wandb"))


def is_offline(path: Path) -> bool:
    """Whether a file was written offline, so that ``wandb sync`` sends it to the server."""
    return path.parent.name.startswith("offline-")


def is_sent(path: Path) -> bool:
    """Whether the server has a file's rows."""
    return not is_offline(path) or path.with_name(f"{path.name}.synced").exists()


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows that were logged, each with its place in the file in bytes. Pictures are rows with ``NAME/path``.

    A file whose service was killed may end in the middle of a record. That part is left out.
    """
    for place, record in _records(path):
        if record.HasField("history"):
            items = record.history.item
            yield place, {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def cut_rows(path: Path, step: float) -> None:
    """Remove everything from the first row after ``step`` on, because the resumed run logs it again."""
    for place, row in read_rows(path):
        if row.get("step", 0) > step:
            os.truncate(path, place)
            return


def _records(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the records of a file with the place where each begins."""
    # The import takes seconds, and only the first process needs it.
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    data, place, start, parts = path.read_bytes(), 7, 7, b""
    while place + HEADER.size <= len(data):
        if BLOCK - place % BLOCK < HEADER.size:  # the rest of a block that is too short for a header
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = HEADER.unpack_from(data, place)
        end = place + HEADER.size + length
        if kind == 0 or end > len(data):
            return
        if kind in (WHOLE, FIRST):
            start, parts = place, b""
        parts += data[place + HEADER.size : end]
        place = end
        if kind in (WHOLE, LAST):
            yield start, Record.FromString(parts)
