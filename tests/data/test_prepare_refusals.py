"""What preparing ImageNet refuses: broken sources, options that contradict each other, unsuitable target folders."""

import fcntl
import os
import shutil
from pathlib import Path

import pytest

from data.prepare import prepare
from data.prepare.originals import TRAIN_TAR, VAL_TAR
from data.prepare.target import refuse_full
from tests import official as small
from tests.official import jpeg, refused, tar_of, task

official, folder = small.official, small.folder


def test_a_tar_cut_short_is_refused(official: Path, tmp_path: Path) -> None:
    for name in (TRAIN_TAR, VAL_TAR):
        size = (official / name).stat().st_size
        for place, end in enumerate((size // 2 + 7, size // 2 // 512 * 512, 10_240, size - 10_240)):
            folder = Path(shutil.copytree(official, tmp_path / f"{name}-{place}"))
            os.truncate(folder / name, end)
            message = refused(task(tars=folder, to=tmp_path / "set"))
            assert f"{folder / name} is damaged or cut short" in message
    assert not (tmp_path / "set").exists()


def test_tars_of_something_else_are_refused(official: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(official, tmp_path / "tars"))
    (folder / TRAIN_TAR).write_bytes(tar_of({"n01440764_1.JPEG": jpeg(1)}))
    assert "holds no n01234567.tar" in refused(task(tars=folder, to=tmp_path / "set"))
    (folder / TRAIN_TAR).write_bytes(tar_of({"n01440764.tar": tar_of({"README": b"text"})}))
    assert "no images of class n01440764" in refused(task(tars=folder, to=tmp_path / "set", splits=["train"]))
    (folder / VAL_TAR).write_bytes(tar_of({"1.JPEG": jpeg(1)}))
    assert "holds no ILSVRC2012_val_00000001.JPEG" in refused(task(tars=folder, to=tmp_path / "set", splits=["val"]))
    (folder / VAL_TAR).write_bytes(b"no tar file")
    assert "is damaged or cut short" in refused(task(tars=folder, to=tmp_path / "set", splits=["val"]))


def test_a_class_tar_that_reaches_beyond_its_end_is_refused(official: Path, tmp_path: Path) -> None:
    """Otherwise its last image would contain the beginning of the next class tar."""
    folder = Path(shutil.copytree(official, tmp_path / "tars"))
    inner = tar_of({"n01440764_1.JPEG": jpeg(1), "n01440764_2.JPEG": jpeg(2)})
    (folder / TRAIN_TAR).write_bytes(tar_of({"n01440764.tar": inner[:2048], "n01443537.tar": tar_of({"x": b""})}))
    assert "is damaged or cut short" in refused(task(tars=folder, to=tmp_path / "set", splits=["train"]))


@pytest.mark.timeout(30)
def test_a_pipe_named_as_an_image_is_refused(folder: Path, tmp_path: Path) -> None:
    """Reading it would wait for ever for a program that writes to it."""
    images = Path(shutil.copytree(folder, tmp_path / "images"))
    place = next(path for path in (images / "train").iterdir() if path.is_dir())
    os.mkfifo(place / "pipe.jpg")
    message = refused(task(folder=images, to=tmp_path / "set"))
    assert f"{place / 'pipe.jpg'} is not a file that holds an image: remove it" in message


def test_an_image_without_a_class_is_refused(official: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("n01440764\n")
    options = {"tars": official, "to": tmp_path / "set", "splits": ["val"]}
    message = refused(task(**options, val_labels=tmp_path / "list.txt"))
    assert "has no class in the list of --val-labels" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folder": "set", "layout": "folder"}, "--layout folder needs --to"),
        ({"tars": "set", "layout": "shards"}, "--layout shards needs --to"),
        ({"tars": "set", "layout": "keep"}, "--layout keep needs --folder and cannot have --to"),
        ({"folder": "set", "to": "new", "layout": "keep"}, "--layout keep needs --folder and cannot have --to"),
        ({"folder": "set", "layout": "keep", "shorter_side": 9}, "--shorter-side needs --to"),
        ({"folder": "set", "to": "set"}, "is inside the source"),
        ({"folder": "set", "to": "set/train"}, "is inside the source"),
        ({"folder": "nowhere", "to": "new"}, "nowhere is not a folder"),
        ({"folder": "set", "to": "new", "splits": ["test"]}, "--splits chooses"),
        ({"tars": "set", "to": "new", "splits": ["test"]}, "no split 'test'"),
        ({"folder": "set", "to": "full"}, "holds files that this command did not write"),
        ({"folder": "set", "to": "new", "layout": "shards", "shard_size": 1}, None),
    ],
)
def test_options_that_make_no_sense_are_refused(
    folder: Path, tmp_path: Path, options: dict[str, object], message: str | None
) -> None:
    (tmp_path / "full" / "train").mkdir(parents=True)
    (tmp_path / "full" / "train" / "mine.txt").write_text("mine")
    places = {"set": folder, "set/train": folder / "train"}
    paths = {k: places.get(v, tmp_path / v) for k, v in options.items() if k in ("tars", "folder", "to")}
    if message is None:
        assert prepare(task(**(options | paths))).bad == 0  # each shard holds at least one class
        return
    assert message in refused(task(**(options | paths)))
    assert not (tmp_path / "new").exists()


def test_too_many_shards_are_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.prepare.target.MOST_SHARDS", 1)
    message = refused(task(folder=folder, to=tmp_path / "set", layout="shards", shard_size=1000))
    assert "--shard-size 1000 makes 4 shards of train, more than 1: set " in message


def test_other_options_on_a_begun_set_are_refused(folder: Path, tmp_path: Path) -> None:
    begun = {"folder": folder, "to": tmp_path, "layout": "shards", "shard_size": 20_000, "splits": ["train"]}
    prepare(task(**begun))
    for other in ({"layout": "folder"}, {"shard_size": 10**9}, {"shorter_side": 30}):
        assert "was prepared from another source or with another" in refused(task(**(begun | other)))
    changed = Path(shutil.copytree(folder, tmp_path / "changed"))
    next(changed.glob("train/*/*.JPEG")).write_bytes(jpeg(77))
    assert "was prepared from another source" in refused(task(**(begun | {"folder": changed})))


def test_a_disk_without_room_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda place: usage._replace(free=1000))
    message = refused(task(folder=folder, to=tmp_path / "new" / "set"))
    assert "GB more are needed in" in message
    assert not (tmp_path / "new").exists()
    refuse_full(tmp_path, [])


def test_two_commands_in_one_place_are_refused(folder: Path, tmp_path: Path) -> None:
    packing = task(folder=folder, to=tmp_path, splits=["train"])
    (tmp_path / "train").mkdir()
    descriptor = os.open(tmp_path / ".train.lock", os.O_WRONLY | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        assert "another process is preparing" in refused(packing)
    finally:
        os.close(descriptor)
    prepare(packing)
