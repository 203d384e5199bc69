"""Reads what a run wrote into its offline files of Weights & Biases."""

import struct
from collections.abc import Iterator
from pathlib import Path

from wandb.proto import wandb_internal_pb2

BLOCK = 32768  # a .wandb file is a LevelDB log: blocks of records with a header of 7 bytes


def records(path: Path) -> Iterator[wandb_internal_pb2.Record]:
    """The records of a ``.wandb`` file."""
    data, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if BLOCK - place % BLOCK < 7:
            place += BLOCK - place % BLOCK
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        if kind == 0:
            break
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def read_run(folder: Path) -> dict:
    """What a run wrote: id, project, entity, group, tags and notes, config keys, history by key, summary by key."""
    (path,) = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))[-1:]
    found: dict = {"id": None, "config": set(), "history": {}, "summary": {}}
    for record in records(path):
        if record.HasField("run"):
            found["id"], found["group"] = record.run.run_id, record.run.run_group
            found["project"], found["entity"] = record.run.project, record.run.entity
            found["tags"], found["notes"] = list(record.run.tags), record.run.notes
            found["config"] |= {item.key for item in record.run.config.update}
        for item in record.history.item:
            found["history"].setdefault(item.key or "/".join(item.nested_key), []).append(item.value_json)
        for item in record.summary.update:
            found["summary"][item.key or "/".join(item.nested_key)] = item.value_json
    return found
