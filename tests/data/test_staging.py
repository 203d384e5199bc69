"""``data.stage_to``: large files are copied to a disk of the node, once, and the copy is used."""

import errno
import os
import shutil
import threading
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data import DataConfig, DataError, open_source, stage, staged, staging_check
from data.storage import staging
from tests.archives import images_in, write_tars, write_zips
from tests.packing import pack
from tests.runs import SMALL, checkpoint, same_tensors, train_here
from tests.source_kinds import encoded, packed

SPLITS = ("train", "val")


def one_zip(images: Path, to: Path) -> Path:
    to.mkdir()
    with zipfile.ZipFile(to / "all.zip", "w") as archive:
        for path in images_in(images):
            archive.write(path, path.relative_to(images))
    return to / "all.zip"


def mapped(images: Path, to: Path) -> Path:
    """Zip files, and a map of one of them."""
    write_zips(images, to)
    names = [path.relative_to(images / "train") for path in images_in(images / "train")]
    (to / "train_map.txt").write_text("".join(f"{name}\t{name.parts[0]}\n" for name in names))
    return to


KINDS = {"zips with a map": mapped, "shards": packed, "tars": write_tars, "zips": write_zips, "one zip": one_zip}


def options(root: Path, tmp_path: Path) -> DataConfig:
    return DataConfig(name="any", root=str(root), stage_to=str(tmp_path / "scratch"))


@pytest.fixture
def cfg(numbered: Path, tmp_path: Path) -> DataConfig:
    """Options that stage five tar files of a training split, and a few of the other one."""
    return options(write_tars(numbered, tmp_path / "set"), tmp_path)


def copies(cfg: DataConfig) -> dict[str, int]:
    """The copied files with the time of their last change, which tells whether a file was written again."""
    return {str(path): path.stat().st_ctime_ns for path in Path(str(cfg.stage_to)).rglob("*.tar")}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_the_copy_is_used_and_needs_no_new_index(
    numbered: Path, tmp_path: Path, kind: Callable[[Path, Path], Path]
) -> None:
    cfg = options(kind(numbered, tmp_path / "set"), tmp_path)
    original = encoded(cfg)
    images = [original.read(i) for i in range(len(original))]
    assert not staging_check(cfg, SPLITS)()
    stage(cfg, SPLITS)
    assert staging_check(cfg, SPLITS)()
    shutil.rmtree(tmp_path / "set")
    for split in SPLITS:
        assert open_source(staged(cfg), split, build=False) is not None, "needs a new index"
    copy = encoded(staged(cfg))
    assert copy.index.fingerprint() == original.index.fingerprint()
    assert [copy.read(i) for i in range(len(copy))] == images
    assert Path(copy.place).is_relative_to(tmp_path / "scratch")


def test_the_copy_is_read_with_the_index_beside_it_where_that_of_the_source_is_elsewhere(
    cfg: DataConfig, tmp_path: Path
) -> None:
    cfg = replace(cfg, index_dir=str(tmp_path / "indexes"))
    stage(cfg, SPLITS)
    for split in SPLITS:
        assert open_source(staged(cfg), split, build=False) is not None, "needs a new index"


def test_each_set_has_one_copy_of_its_own_whatever_its_name(tmp_path: Path) -> None:
    for folder in ("first", "second"):
        (tmp_path / folder / "set").mkdir(parents=True)
    (tmp_path / "link").symlink_to("first")
    first, second, link = (staged(options(tmp_path / f / "set", tmp_path)).root for f in ("first", "second", "link"))
    assert first == link != second


def test_a_file_of_both_splits_is_copied_once(numbered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources, carry_out = [], staging._carry_out

    def noted(copy: staging.Copy, *others: Any) -> None:
        sources.append(copy.source.name)
        carry_out(copy, *others)

    monkeypatch.setattr(staging, "_carry_out", noted)
    stage(options(one_zip(numbered, tmp_path / "set"), tmp_path), SPLITS)
    assert sorted(sources) == [*(f".coldstart-index-all.zip-{split}.npz" for split in SPLITS), "all.zip"]


@pytest.mark.parametrize("seconds", [10, -10], ids=["newer", "older"])
def test_only_what_is_missing_or_changed_is_copied(seconds: int, cfg: DataConfig) -> None:
    stage(cfg, SPLITS)
    before = copies(cfg)
    first, second, *_ = sorted(before)
    os.unlink(first)
    changed = Path(str(cfg.root)) / Path(second).relative_to(Path(str(staged(cfg).root)))
    os.utime(changed, (changed.stat().st_mtime + seconds,) * 2)
    assert not staging_check(cfg, SPLITS)()
    stage(cfg, SPLITS)
    after = copies(cfg)
    assert after.keys() == before.keys()
    assert {path for path in after if path not in (first, second)} == {p for p in after if after[p] == before[p]}


def test_what_a_killed_start_left_is_removed_and_nothing_else(cfg: DataConfig) -> None:
    stage(cfg, SPLITS)
    place = Path(next(iter(copies(cfg)))).parent
    (place / f"{staging.PARTIAL}train-0000.tar").touch()
    (place / "mine.txt").touch()
    stage(cfg, SPLITS)
    assert {path.name for path in place.iterdir() if path.suffix != ".tar"} == {"mine.txt"}


def test_where_there_are_no_locks_another_run_may_still_write_and_nothing_is_removed(
    cfg: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("data.storage.locks.fcntl.flock", no_locks)
    stage(cfg, SPLITS)
    begun = Path(next(iter(copies(cfg)))).with_name(f"{staging.PARTIAL}train-0000.tar")
    begun.touch()
    stage(cfg, SPLITS)
    assert begun.exists()


def test_two_runs_on_a_node_copy_once(cfg: DataConfig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    threads = [threading.Thread(target=stage, args=(cfg, SPLITS)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert staging_check(cfg, SPLITS)()
    assert sum("copying" in message for message in caplog.messages) == 1


# --- what is refused ------------------------------------------------------------------------------------------------


def test_class_folders_are_not_copied(numbered: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"copies large files, but the train images are in class folders: leave"):
        stage(options(numbered, tmp_path), SPLITS)


def test_a_disk_that_is_too_small_is_refused_before_anything_is_copied(
    cfg: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 5, 5))
    with pytest.raises(DataError, match=r"scratch has 0 MB free, and the images need \d+ MB more: free space"):
        stage(cfg, SPLITS)
    assert not copies(cfg)


def test_a_changed_file_takes_the_space_of_its_old_copy(cfg: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    stage(cfg, SPLITS)
    for tar in Path(str(cfg.root)).rglob("*.tar"):
        os.utime(tar, (tar.stat().st_mtime + 10,) * 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6 - 5000, 5000))
    stage(cfg, SPLITS)
    assert staging_check(cfg, SPLITS)()


def test_the_old_copy_of_a_changed_file_is_gone_before_the_new_one_is_written(
    cfg: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage(cfg, SPLITS)
    old = Path(min(copies(cfg)))
    changed = Path(str(cfg.root)) / old.relative_to(Path(str(staged(cfg).root)))
    os.utime(changed, (changed.stat().st_mtime + 10,) * 2)
    was_there, write = [], staging._written

    def noted(source: Path, *rest: Any) -> bytes:
        if source == changed:
            was_there.append(old.exists())
        return write(source, *rest)

    monkeypatch.setattr(staging, "_written", noted)
    stage(cfg, SPLITS)
    assert was_there == [False] and old.exists()


def test_a_disk_that_fills_up_costs_nothing_that_is_there(cfg: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    written = staging._written

    def full(source: Path, target: Path, bar: object, stop: threading.Event) -> bytes:
        if source.name == "train-0003.tar":
            target.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(source, target, bar, stop)

    with monkeypatch.context() as patch:
        patch.setattr(staging, "_written", full)
        with pytest.raises(DataError, match=r"cannot write .*train-0003\.tar \(No space left on device\): free space"):
            stage(cfg, SPLITS)
    before = copies(cfg)
    assert before and not any("train-0003" in path for path in before)
    assert not list(Path(str(cfg.stage_to)).rglob(f"{staging.PARTIAL}*"))
    stage(cfg, SPLITS)
    assert staging_check(cfg, SPLITS)()
    assert copies(cfg).items() >= before.items()


def test_when_one_file_cannot_be_copied_the_others_stop_at_once(
    cfg: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, has_begun = staging._written, threading.Event()

    def failing(source: Path, target: Path, bar: Any, stop: threading.Event) -> bytes:
        if source.name == "train-0000.tar":
            assert has_begun.wait(100)
            raise OSError(errno.EIO, "Input/output error")
        has_begun.set()
        stop.wait(100)
        return written(source, target, bar, stop)

    monkeypatch.setattr(staging, "_written", failing)
    with pytest.raises(DataError, match=r"train-0000\.tar \(Input/output error\)"):
        stage(cfg, SPLITS)
    assert not copies(cfg)


def test_a_copy_that_differs_is_refused(cfg: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "_digest", lambda path: b"other")
    with pytest.raises(DataError, match="does not hold what was written to it: the disk is damaged"):
        stage(cfg, SPLITS)
    assert not copies(cfg)


def test_a_link_is_not_followed(cfg: DataConfig, tmp_path: Path) -> None:
    place = Path(str(staged(cfg).root)).parent
    place.parent.mkdir()
    place.symlink_to(tmp_path)
    with pytest.raises(DataError, match="is a link, and is not trusted"):
        stage(cfg, SPLITS)


def test_a_folder_of_another_user_is_not_used(cfg: DataConfig) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    place = Path(str(staged(cfg).root)).parent
    place.mkdir(parents=True)
    os.chown(place, 12345, 12345)
    with pytest.raises(DataError, match=r"belongs to another user, number 12345, .*set data\.stage_to to a folder"):
        stage(cfg, SPLITS)


# --- a run ----------------------------------------------------------------------------------------------------------


def test_a_run_may_be_staged_or_not_when_it_is_resumed(small_images: Path, here: Path) -> None:
    for split in SPLITS:
        pack(small_images, here / "packed", split, shard_size=20_000)
    common = (*SMALL, "data.root=packed")
    train_here(*common, "name=plain", "max_steps=6")
    train_here(*common, "name=staged", "max_steps=3", "data.stage_to=scratch")
    assert list(here.glob("scratch/coldstart-*/packed/train/shard-00000.tar"))
    train_here(*common, "name=staged", "max_steps=6")
    plain, moved = (checkpoint(here / "outputs" / name) for name in ("plain", "staged"))
    assert plain["step"] == moved["step"] == 6
    assert same_tensors(plain["model"], moved["model"])
