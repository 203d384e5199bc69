"""Packing small image folders into shards, in this process, and opening them."""

from pathlib import Path

from data.prepare.originals import image_folder
from data.prepare.shard_index import write_packed_index
from data.prepare.target import Target
from data.prepare.writing import write_shard
from data.sources.shards import ShardSource
from tests.opening import source_of


def pack(root: Path, to: Path, split: str = "train", shard_size: int = 100_000) -> Path:
    """Pack ``root/split`` into shards in ``to/split``; returns ``to``."""
    target = Target.shards(to / split, image_folder(root, split), None, shard_size)
    target.folder.mkdir(parents=True)
    shards = [write_shard(part, None).rows for part in target.parts]
    write_packed_index(target.folder, shards)
    return to


def opened(root: Path, split: str = "train") -> ShardSource:
    """The source of a packed split."""
    source = source_of(root, split)
    assert isinstance(source, ShardSource)
    return source
