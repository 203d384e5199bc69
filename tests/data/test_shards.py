"""Packed splits: the same images, order and batches as from the folder, in every process."""

import os
import pickle
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.backends import build_backend
from data.config import AugmentConfig, DataConfig
from data.errors import DataError
from data.index.arrays import write_arrays
from data.index.image_index import VERSION
from data.loader import Batch, Loader
from data.planning.geometry import BatchGeometry
from data.planning.plan import EvalPlan, TrainPlan
from data.prepare.originals import ClassImages, ClassMembers, Member, Split
from data.prepare.target import Target
from data.sets.dataset import is_prepared, open_split
from data.sources.shards import PACKED_INDEX
from tests.opening import open_at, source_of
from tests.packing import opened, pack

CPU = torch.device("cpu")
BACKENDS = ("torch", "dali")


def batches(root: Path, kind: str, split: str = "train", workers: int = 0, steps: range = range(4)) -> list[Batch]:
    cfg = DataConfig(name="folder", root=str(root), crop=48, resize=54)
    images = open_split(cfg, split)
    loader = Loader(build_backend(kind, images.source, cfg, CPU, workers, 16), images.labels, CPU)
    if split == "val":
        return list(loader.evaluate(EvalPlan(images.index, cfg), 3, 1, 0))
    plan = TrainPlan(images.index, 5, cfg, AugmentConfig(mix_group=4), BatchGeometry(10, 4, micro_batch_size=4))
    return list(loader.train(plan, steps.start, steps.stop))


def same(some: list[Batch], others: list[Batch]) -> bool:
    return all(
        np.array_equal(a.index, b.index) and torch.equal(a.labels, b.labels) and torch.equal(a.images, b.images)
        for a, b in zip(some, others, strict=True)
    )


# --- the same as from a folder --------------------------------------------------------------------------------------


def test_the_index_is_the_folders(photographs: Path, packed: Path) -> None:
    folder, shards = source_of(photographs), opened(packed)
    ours, theirs = shards.index, folder.index
    assert shards.layout == f"{len(ours.extra['shard_sizes'])} shards" != "1 shards"
    assert ours.fingerprint() == theirs.fingerprint()
    assert (list(ours.paths), ours.classes) == (list(theirs.paths), theirs.classes)
    for column in ("targets", "heights", "widths", "lengths"):
        assert np.array_equal(getattr(ours, column), getattr(theirs, column))
    assert ours.odd_colours == theirs.odd_colours != frozenset()
    for i in range(len(folder)):
        assert shards.read(i) == Path(str(folder.path(i))).read_bytes() == folder.read(i)


def test_a_shard_takes_as_many_whole_classes_as_fit(tmp_path: Path) -> None:
    sizes = [30, 30, 40, 1, 150, 60]
    classes: list[ClassImages] = [ClassMembers(str(i), [Member("any", "", 0, size)]) for i, size in enumerate(sizes)]
    parts = Target.shards(tmp_path, Split("train", classes), None, shard_size=100).parts
    assert [[source.size for source in part.sources] for part in parts] == [[30, 30, 40], [1], [150], [60]]


def test_shards_are_ordinary_tar_files(photographs: Path, packed: Path, tmp_path: Path) -> None:
    for shard in sorted((packed / "train").glob("shard-*.tar")):
        subprocess.run(["tar", "-xf", shard, "-C", tmp_path], check=True)
    subprocess.run(["diff", "-r", photographs / "train", tmp_path], check=True)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(("kind", "workers"), [("torch", 0), ("torch", 2), ("dali", 2)])
def test_batches_are_the_folders_bit_by_bit(
    photographs: Path, packed: Path, kind: str, workers: int, split: str
) -> None:
    assert same(batches(packed, kind, split, workers), batches(photographs, kind, split, workers))


@pytest.mark.parametrize("kind", BACKENDS)
def test_a_resumed_run_gets_the_same_batches_in_either_layout(photographs: Path, packed: Path, kind: str) -> None:
    whole = batches(photographs, kind, steps=range(7))
    assert same(batches(packed, kind, steps=range(5, 7)), whole[-6:])  # 5 is in the middle of the second epoch


@pytest.mark.parametrize("layout", ["photographs", "packed"])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_an_epoch_takes_the_same_images_on_any_number_of_processes(
    request: pytest.FixtureRequest, layout: str, world: int
) -> None:
    cfg = DataConfig(name="folder", root=str(request.getfixturevalue(layout)), crop=8)
    index = open_split(cfg, "train").index
    plans = [
        TrainPlan(index, 1, cfg, AugmentConfig(mix_group=1), BatchGeometry(11, 1, world, rank)) for rank in range(world)
    ]
    for epoch in range(2):
        steps = range(epoch * 3, epoch * 3 + 3)
        taken = [plan.crops(*place).index for step in steps for plan in plans for place in plan.positions(step)]
        assert np.array_equal(np.concatenate(taken), plans[0].order(epoch)[:33])
        assert len(set(np.concatenate(taken).tolist())) == 33


def test_any_file_name_survives_packing(tmp_path: Path) -> None:
    names = ("two words.png", "müller 猫.png", "x" * 150 + ".png", os.fsdecode(b"caf\xe9.png"), "deep/er/1.png")
    for name in names:
        path = tmp_path / "set" / "train" / "class é" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6)).save(path)
    folder = source_of(tmp_path / "set")
    shards = opened(pack(tmp_path / "set", tmp_path / "packed"))
    assert shards.index.fingerprint() == folder.index.fingerprint()
    assert [shards.read(i) for i in range(5)] == [folder.read(i) for i in range(5)]


def test_files_that_are_no_images_mean_the_same_as_in_a_folder(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.png", "b/1.png"):
        (tmp_path / "set" / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6)).save(tmp_path / "set" / "train" / name)
    (tmp_path / "set" / "train" / "a" / "1.png").write_text("no image")
    to = pack(tmp_path / "set", tmp_path / "packed")
    with pytest.raises(DataError, match=r"train/shard-00000\.tar: a/1\.png is not a JPEG or PNG image: repair it"):
        open_at(to)
    assert list(source_of(to, on_bad_image="skip").index.paths) == ["a/2.png", "b/1.png"]


def test_a_packed_set_is_prepared(own: Path, tmp_path: Path) -> None:
    cfg = DataConfig(name="folder", root=str(own))
    assert is_prepared(cfg, ["train", "val"])
    assert is_prepared(replace(cfg, index_dir=str(tmp_path / "unused")), ["train", "val"])
    assert not (tmp_path / "unused").exists()


# --- across processes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["photographs", "packed"])
def test_an_index_is_mapped_by_other_processes(request: pytest.FixtureRequest, layout: str) -> None:
    source = source_of(request.getfixturevalue(layout))
    sent = pickle.dumps(source)
    assert len(sent) < 1000
    copy = pickle.loads(sent)
    assert copy.index.fingerprint() == source.index.fingerprint()
    assert [copy.read(i) for i in range(3)] == [source.read(i) for i in range(3)]


def test_an_index_whose_file_was_replaced_is_sent_as_it_is(own: Path) -> None:
    source = opened(own)
    source.read(0)
    write_arrays(own / "train" / PACKED_INDEX, {"version": np.array(VERSION)})
    copy = pickle.loads(pickle.dumps(source))
    assert copy.index.file is None
    assert (copy.index.fingerprint(), copy.read(5)) == (source.index.fingerprint(), source.read(5))


def test_an_index_replaced_on_the_way_is_refused(own: Path) -> None:
    sent = pickle.dumps(opened(own))
    write_arrays(own / "train" / PACKED_INDEX, {"version": np.array(VERSION)})
    with pytest.raises(DataError, match="was replaced"):
        pickle.loads(sent)


def test_a_changed_copy_is_not_the_file(packed: Path) -> None:
    index = opened(packed).index
    changed = replace(index, targets=index.targets[::-1])
    assert pickle.loads(pickle.dumps(changed)).fingerprint() == changed.fingerprint() != index.fingerprint()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads /proc")
def test_shards_stay_open_and_are_closed_with_their_source(own: Path) -> None:
    def open_shards() -> int:
        places = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
        return sum(place.startswith(str(own)) and place.endswith(".tar") for place in places)

    source = opened(own)
    for i in range(len(source)):
        source.read(i)
    assert open_shards() == len(source.index.extra["shard_sizes"])
    del source
    assert open_shards() == 0
