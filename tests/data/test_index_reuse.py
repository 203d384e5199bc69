"""When the image index is reused, and when it is built again because the folder changed."""

import os
import shutil
from pathlib import Path

import pytest

from data.errors import DataError
from data.index.headers import Header, read_header
from tests import indexing
from tests.indexing import index_of, paint, paths, refused, touch_later
from tests.opening import open_at, source_of

root = indexing.root


def test_files_are_not_opened_again(root: Path) -> None:
    folder = root / "train" / "a"
    before = os.stat(folder).st_mtime_ns
    (folder / "1.png").write_bytes(b"no image any more")
    os.utime(folder, ns=(before, before))
    index = index_of(root)
    assert not index.bad
    assert (index.heights.tolist(), index.widths.tolist()) == ([6] * 4, [8] * 4)
    os.utime(folder)
    assert "1.png is not a JPEG or PNG image" in refused(root)


def test_without_building_there_is_an_index_only_where_one_was_built(root: Path, tmp_path: Path) -> None:
    assert open_at(root, build=False) is not None
    paint(tmp_path / "new" / "train" / "a" / "1.png")
    assert open_at(tmp_path / "new", build=False) is None
    assert not list((tmp_path / "new").glob(".*"))


@pytest.mark.parametrize("folder", ["train/a", "train/a/nested"])
def test_an_added_file_is_found(root: Path, folder: str) -> None:
    paint(root / "train" / "a" / "nested" / "0.png")
    touch_later(root / "train" / "a")
    assert len(index_of(root)) == 5
    paint(root / folder / "new.png")
    touch_later(root / folder)
    assert f"{folder}/new.png".removeprefix("train/") in paths(index_of(root))


def test_a_removed_file_is_gone(root: Path) -> None:
    (root / "train" / "a" / "1.png").unlink()
    touch_later(root / "train" / "a")
    assert paths(index_of(root)) == ["a/2.jpg", "b/3.png", "b/4.jpeg"]


def test_an_added_class_folder_is_found(root: Path) -> None:
    paint(root / "train" / "aa" / "1.png")
    touch_later(root / "train")
    index = index_of(root)
    assert index.classes == ["a", "aa", "b"]
    assert index.targets.tolist() == [0, 0, 1, 2, 2]


def test_a_removed_class_folder_is_gone(root: Path) -> None:
    shutil.rmtree(root / "train" / "a")
    assert index_of(root).classes == ["b"]


def test_a_moved_folder_keeps_its_index(root: Path, tmp_path: Path) -> None:
    moved = root.rename(tmp_path / "moved")
    assert Path(str(source_of(moved, build=False).path(0))).is_file()


def test_another_users_index_is_trusted_beside_the_images_and_not_in_the_cache(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file to another user")
    (file,) = root.glob(".coldstart-index-*")
    os.chown(file, 12345, 12345)
    assert len(index_of(root)) == 4
    monkeypatch.setattr("data.index.building.cache_dir", lambda: tmp_path)
    with pytest.raises(DataError, match=f"^{file} belongs to another user, number 12345"):
        index_of(root)
    os.chown(file, 0, 0)
    file.with_suffix(".pieces").mkdir()
    os.chown(file.with_suffix(".pieces"), 12345, 12345)
    with pytest.raises(DataError, match=r"\.pieces belongs to another user, number 12345"):
        index_of(root)


def interrupted(root: Path, monkeypatch: pytest.MonkeyPatch, **options: str) -> None:
    """Index a folder up to class b, where Ctrl-C arrives. Even the smallest class is kept for the next start."""

    def reading(path: Path) -> Header | str:
        if path.parent.name == "b":
            raise KeyboardInterrupt
        return read_header(path)

    with monkeypatch.context() as patch:
        patch.setattr("data.sources.folder.read_header", reading)
        with pytest.raises(KeyboardInterrupt):
            source_of(root, **options)


def test_after_an_interrupted_start_a_class_that_has_changed_is_read_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.index.pieces.LEAST", 1)
    touch_later(root / "train" / "a")
    interrupted(root, monkeypatch)
    assert len(list(root.glob(".*.pieces/*"))) == 1
    paint(root / "train" / "a" / "1.png", 30, 20)
    touch_later(root / "train" / "a")
    assert (index_of(root).widths.tolist(), index_of(root).heights.tolist()) == ([30, 8, 8, 8], [20, 6, 6, 6])


def test_after_an_interrupted_start_an_image_that_was_bad_is_read_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is repaired in place, which its folder does not show."""
    monkeypatch.setattr("data.index.pieces.LEAST", 1)
    image = root / "train" / "a" / "1.png"
    image.write_text("no image")
    touch_later(image.parent)
    interrupted(root, monkeypatch, on_bad_image="skip")
    before = os.stat(image.parent).st_mtime_ns
    paint(image)
    os.utime(image.parent, ns=(before, before))
    assert paths(index_of(root, on_bad_image="skip")) == ["a/1.png", "a/2.jpg", "b/3.png", "b/4.jpeg"]
