"""Damaged packed splits: refused at the start, or an error that names shard and image."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from data.backends import build_backend
from data.config import DataConfig
from data.errors import DataError
from data.index.arrays import ArrayFile, write_arrays
from data.index.image_index import VERSION
from data.planning.plan import EvalPlan
from data.sources.shards import PACKED_INDEX, ShardSource
from tests.opening import open_at
from tests.packing import opened

CPU = torch.device("cpu")
BACKENDS = ("torch", "dali")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.sources.source.PAUSES", ())


def cut_short(folder: Path) -> None:
    os.truncate(folder / "shard-00001.tar", 100_000)


def missing(folder: Path) -> None:
    (folder / "shard-00001.tar").unlink()


def longer(folder: Path) -> None:
    with open(folder / "shard-00001.tar", "ab") as file:
        file.write(bytes(512))


def other_version(folder: Path) -> None:
    arrays = ArrayFile(folder / PACKED_INDEX).arrays
    write_arrays(folder / PACKED_INDEX, arrays | {"version": np.array(VERSION + 1)})


def earlier_version(folder: Path) -> None:
    """Version 2 noted only the images in CMYK."""
    arrays = dict(ArrayFile(folder / PACKED_INDEX).arrays)
    arrays["cmyk"] = arrays.pop("odd_colours")
    write_arrays(folder / PACKED_INDEX, arrays | {"version": np.array(2)})


def damaged_index(folder: Path) -> None:
    content = bytearray((folder / PACKED_INDEX).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / PACKED_INDEX).write_bytes(content)


def without_index(folder: Path) -> None:
    (folder / PACKED_INDEX).unlink()


REFUSALS = {
    cut_short: r"shard-00001\.tar is cut short, 100000 of \d+ bytes",
    missing: r"shard-00001\.tar cannot be read \(No such file",
    longer: r"shard-00001\.tar differs from the index",
    other_version: r"index\.npz was written by another version .* scripts/prepare_imagenet\.py --folder",
    earlier_version: r"index\.npz was written by another version .* --splits train --layout keep",
    damaged_index: r"index\.npz is damaged .* scripts/prepare_imagenet\.py --folder",
    without_index: r"holds shards but no index\.npz: .* scripts/prepare_imagenet\.py",
}


@pytest.mark.parametrize("damage", REFUSALS, ids=lambda damage: damage.__name__)
def test_damage_is_refused_at_the_start(own: Path, damage: Callable[[Path], None]) -> None:
    damage(own / "train")
    with pytest.raises(DataError, match=REFUSALS[damage]) as caught:
        open_at(own)
    assert str(own / "train") in str(caught.value)
    assert "\n" not in str(caught.value)


def overwritten(source: ShardSource, i: int) -> None:
    """Damage one image after the split is opened, without changing the shard's size."""
    begin, length = source.byte_range(i)
    with open(source.shard(i), "r+b") as file:
        file.seek(begin + 400)
        file.write(bytes(length - 400))


def shortened(source: ShardSource, i: int) -> None:
    os.truncate(source.shard(i), source.byte_range(i)[0] + 1000)


@pytest.mark.parametrize("damage", [overwritten, shortened])
@pytest.mark.parametrize(("kind", "workers"), [("torch", 0), ("torch", 1), ("dali", 2)])
def test_an_image_damaged_in_the_middle_of_an_epoch_is_named(
    own: Path, kind: str, workers: int, damage: Callable[[ShardSource, int], None]
) -> None:
    cfg = DataConfig(name="folder", root=str(own), crop=48, resize=54)
    source = opened(own)
    (i,) = (row for row, path in enumerate(source.index.paths) if path == "coffee/progressive.JPG")
    damage(source, i)
    plan, backend = EvalPlan(source.index, cfg), build_backend(kind, source, cfg, CPU, workers, 4)
    first = i if damage is overwritten else i - 1
    with pytest.raises(DataError) as caught:
        list(backend.batches(iter([plan.crops(range(first - 1, i + 1))])))
    reason = "its file has been cut short" if damage is shortened else ""
    assert f"{source.name(i)} cannot be decoded ({reason}" in str(caught.value)
    assert source.name(i).endswith(".tar: coffee/progressive.JPG")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", BACKENDS)
def test_an_error_of_the_disk_is_named(packed: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = DataConfig(name="folder", root=str(packed), crop=48, resize=54)
    source = opened(packed)
    bad, read = source.byte_range(2)[0], os.pread

    def failing(descriptor: int, length: int, offset: int) -> bytes:
        if offset == bad:
            raise OSError(errno.EIO, "Input/output error")
        return read(descriptor, length, offset)

    monkeypatch.setattr("data.sources.byte_ranges.os.pread", failing)
    backend = build_backend(kind, source, cfg, CPU, 0, 4)
    stream = backend.batches(iter([EvalPlan(source.index, cfg).crops(range(n, n + 2)) for n in (0, 2)]))
    with pytest.raises(DataError, match=r"shard-00000\.tar: .*cannot be decoded \(Input/output error\)"):
        list(stream)
