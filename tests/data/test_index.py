"""The image index: what it holds, when it is reused, when it is built again, and what it refuses."""

import os
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.errors import DataError
from data.index import VERSION, ImageIndex
from data.sources.synthetic import SyntheticSource
from tests.opening import open_at, source_of


def paint(path: Path, width: int = 8, height: int = 6) -> Path:
    """Write a small image; the file name sets the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (200, 30, 60)).save(path)
    return path


def index_of(root: Path, split: str = "train", **options) -> ImageIndex:
    return source_of(root, split, **options).index


def paths(index: ImageIndex) -> list[str]:
    return list(index.paths)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes with two images each, indexed."""
    for name in ("a/1.png", "a/2.jpg", "b/3.png", "b/4.jpeg"):
        paint(tmp_path / "set" / "train" / name)
    index_of(tmp_path / "set")
    return tmp_path / "set"


def refused(root: Path, split: str = "train", **options) -> str:
    """The one-line message with which the folder is refused."""
    with pytest.raises(DataError) as caught:
        open_at(root, split, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what it holds --------------------------------------------------------------------------------------------------


def test_sizes_are_those_pillow_decodes(photographs: Path) -> None:
    source = source_of(photographs)
    index = source.index
    assert len(index) == 4 * 7 + 6
    assert not index.bad
    for i in range(len(index)):
        with Image.open(str(source.path(i))) as image:
            image.load()
            assert (index.heights[i], index.widths[i]) == (image.height, image.width), index.paths[i]
        assert index.paths[i].split("/")[0] == index.classes[index.targets[i]]


def test_images_are_sorted_by_class_and_path(tmp_path: Path) -> None:
    for name in ("b/1.png", "a/b/0.png", "a/10.png", "a/2.png", "a-b/1.png", "a/c.png"):
        paint(tmp_path / "train" / name)
    index = index_of(tmp_path)
    assert index.classes == ["a", "a-b", "b"]
    assert paths(index) == ["a/10.png", "a/2.png", "a/b/0.png", "a/c.png", "a-b/1.png", "b/1.png"]
    assert index.targets.tolist() == [0, 0, 0, 0, 1, 2]


def test_nested_folders_belong_to_their_class(tmp_path: Path) -> None:
    paint(tmp_path / "train" / "a" / "deep" / "er" / "1.png", 3, 4)
    index = index_of(tmp_path)
    assert index.classes == ["a"]
    assert paths(index) == ["a/deep/er/1.png"]
    assert (index.heights[0], index.widths[0]) == (4, 3)


@pytest.mark.parametrize("name", ["two words.png", "müller 猫.png", "%s{0}'\".png", os.fsdecode(b"caf\xe9.png")])
def test_any_file_name_survives(tmp_path: Path, name: str) -> None:
    class_name = f"class {Path(name).stem}"
    paint(tmp_path / "train" / class_name / name)
    for _ in ("built", "read"):
        source = source_of(tmp_path)
        index = source.index
        assert index.classes == [class_name]
        assert Path(str(source.path(0))).samefile(tmp_path / "train" / class_name / name)
        assert [len(part) for part in index.fingerprint().split("-")] == [16] * 3


def test_other_files_are_no_images(root: Path) -> None:
    (root / "train" / "a" / "notes.txt").write_text("no image")
    (root / "train" / "a" / ".hidden.png").write_text("no image")
    (root / "train" / "README.png").write_text("no image: not in a class folder")
    paint(root / "train" / ".cache" / "1.png")
    assert paths(index_of(root)) == ["a/1.png", "a/2.jpg", "b/3.png", "b/4.jpeg"]


def test_fingerprint_tells_sets_apart_not_places(root: Path, tmp_path: Path) -> None:
    first = index_of(root).fingerprint()
    copy = tmp_path / "elsewhere"
    shutil.copytree(root / "train", copy / "train")
    assert index_of(copy).fingerprint() == first
    (copy / "train" / "b").rename(copy / "train" / "c")
    renamed = index_of(copy).fingerprint()
    (copy / "train" / "c" / "3.png").rename(copy / "train" / "a" / "3.png")
    moved = index_of(copy).fingerprint()
    assert len({first, renamed, moved}) == 3
    index = index_of(root)
    assert replace(index, targets=index.targets[::-1]).fingerprint() != first


def test_a_synthetic_index_is_even_over_the_classes() -> None:
    index = SyntheticSource(30, 10, 224).index
    assert np.bincount(index.targets).tolist() == [3] * 10
    assert len(index.classes) == 10
    assert set(index.heights) == set(index.widths) == {224}


# --- when it is reused ----------------------------------------------------------------------------------------------


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


def touch_later(folder: Path) -> None:
    """Move the modification time on, so that the change is visible at any clock resolution of the file system."""
    later = os.stat(folder).st_mtime_ns + 1_000_000
    os.utime(folder, ns=(later, later))


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


# --- its file -------------------------------------------------------------------------------------------------------


def other_version(path: Path) -> None:
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **(arrays | {"version": VERSION + 1, "heights": arrays["heights"] * 2}))


def without_a_part(path: Path) -> None:
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files if name != "heights"}
    np.savez(path, **arrays)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])


def changed(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(b"a/1.png")] ^= 1
    path.write_bytes(content)


def encrypted(path: Path) -> None:
    """Set the flag that marks the first member of a zip file as encrypted."""
    content = bytearray(path.read_bytes())
    content[content.find(b"PK\1\2") + 8] ^= 1
    path.write_bytes(content)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("this is text")


@pytest.mark.parametrize("damage", [other_version, without_a_part, cut_short, changed, encrypted, emptied, text])
def test_an_index_that_cannot_be_used_is_built_anew(root: Path, damage: Callable[[Path], None]) -> None:
    (file,) = root.glob(".*.npz")
    damage(file)
    assert open_at(root, build=False) is None
    index = index_of(root)
    assert (len(index), index.heights.tolist()) == (4, [6] * 4)
    assert open_at(root, build=False) is not None


def test_index_lies_in_index_dir(root: Path, tmp_path: Path) -> None:
    where = tmp_path / "new" / "indexes"
    paint(root / "val" / "a" / "1.png", 5, 5)
    other = tmp_path / "other"
    paint(other / "train" / "z" / "1.png")
    before = sorted(root.iterdir())
    for _ in ("built", "read"):
        assert index_of(root, index_dir=str(where)).classes == ["a", "b"]
        assert index_of(root, "val", index_dir=str(where)).heights.tolist() == [5]
        assert index_of(other, index_dir=str(where)).classes == ["z"]
    assert len(list(where.iterdir())) == 3
    assert sorted(root.iterdir()) == before
    assert not list(other.glob(".*"))


def test_index_of_a_root_that_cannot_be_written_lies_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "set"
    paint(root / "train" / "a" / "1.png")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "data.index.building.os.access", lambda path, mode: Path(path) != root
    )  # root may write everywhere, so os.access is replaced
    index_of(root)
    assert [path.name for path in root.iterdir()] == ["train"]
    assert len(list((tmp_path / "cache" / "coldstart" / "index").iterdir())) == 1
    assert open_at(root, build=False) is not None


def test_index_dir_that_cannot_be_written_is_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    message = refused(root, index_dir=str(tmp_path / "file" / "indexes"))
    assert "set data.index_dir" in message


# --- what it refuses ------------------------------------------------------------------------------------------------


def text_file(path: Path) -> None:
    path.write_text("this is text")


def empty_file(path: Path) -> None:
    path.write_bytes(b"")


def sixteen_bit_png(path: Path) -> None:
    Image.fromarray(np.full((6, 8), 40000, dtype=np.uint16)).save(path, format="PNG")


def sixteen_bit_colour_png(path: Path) -> None:
    """Written by hand: Pillow reads such a file as if it had 8 bits, and cannot write one."""
    lines = b"".join(b"\0" + np.full((8, 3), 40000, dtype=">u2").tobytes() for _ in range(6))
    header = struct.pack(">IIBBBBB", 8, 6, 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    content = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(content))


def gif(path: Path) -> None:
    Image.new("RGB", (8, 6)).save(path, format="GIF")


def dangling_link(path: Path) -> None:
    path.symlink_to("nowhere.png")


def named_pipe(path: Path) -> None:
    os.mkfifo(path)


def png_with_a_short_chunk(path: Path) -> None:
    """Damage for which Pillow raises another exception than usual."""
    paint(path.with_suffix(".png"))
    content = path.with_suffix(".png").read_bytes()
    path.with_suffix(".png").unlink()
    chunk = struct.pack(">I", 2) + b"pHYs\0\0" + struct.pack(">I", zlib.crc32(b"pHYs\0\0"))
    path.write_bytes(content[:33] + chunk + content[33:])


BAD = {
    "text.jpg": text_file,
    "empty.png": empty_file,
    "deep.png": sixteen_bit_png,
    "deep-colour.png": sixteen_bit_colour_png,
    "moving.gif": gif,
    "moving.JPEG": gif,
    "link.jpg": dangling_link,
    "pipe.jpg": named_pipe,
    "chunk.PNG": png_with_a_short_chunk,
}


def test_a_folder_that_cannot_be_read_is_named(root: Path) -> None:
    loop = root / "train" / "a" / "loop"
    loop.symlink_to(loop)
    touch_later(root / "train" / "a")
    assert f"{loop} cannot be read (Too many levels of symbolic links)" in refused(root)


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_no_image_is_named(root: Path, name: str) -> None:
    BAD[name](root / "train" / "a" / name)
    touch_later(root / "train" / "a")
    for _ in ("built", "read"):
        message = refused(root)
        assert str(root / "train" / "a" / name) in message
        assert "on_bad_image=skip" in message


def test_files_that_are_no_images_are_left_out_where_asked_for(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, write in BAD.items():
        write(root / "train" / "a" / name)
    touch_later(root / "train" / "a")
    assert f"and {len(BAD) - 1} more" in refused(root)
    for _ in ("built", "read"):
        caplog.clear()
        index = index_of(root, on_bad_image="skip")
        assert paths(index) == ["a/1.png", "a/2.jpg", "b/3.png", "b/4.jpeg"]
        assert index.targets.tolist() == [0, 0, 1, 1]
        assert sorted(entry.split(" ")[0] for entry in index.bad) == sorted(str(root / "train/a" / n) for n in BAD)
        assert f"left out {len(BAD)} files" in caplog.text


def test_a_file_mended_in_place_is_accepted(root: Path) -> None:
    file = root / "train" / "a" / "0.png"
    file.write_text("no image")
    touch_later(root / "train" / "a")
    assert str(file) in refused(root)
    before = os.stat(file.parent).st_mtime_ns
    paint(file)
    os.utime(file.parent, ns=(before, before))
    assert paths(index_of(root))[0] == "a/0.png"


def test_a_missing_split_is_refused(tmp_path: Path) -> None:
    assert f"{tmp_path / 'train'} is not a folder" in refused(tmp_path)


def test_a_split_without_class_folders_is_refused(tmp_path: Path) -> None:
    paint(tmp_path / "train" / "1.png")
    assert f"{tmp_path / 'train'} has no class folders" in refused(tmp_path)


def test_a_class_without_images_is_refused_by_name(root: Path) -> None:
    (root / "train" / "ab").mkdir()
    touch_later(root / "train")
    for _ in ("built", "read"):
        assert f"class folder {root / 'train' / 'ab'} holds no images" in refused(root)
    paint(root / "train" / "ab" / "1.png")
    touch_later(root / "train" / "ab")
    assert index_of(root).classes == ["a", "ab", "b"]


def test_a_class_of_which_all_images_are_left_out_is_refused(root: Path) -> None:
    (root / "train" / "ab").mkdir()
    text_file(root / "train" / "ab" / "1.png")
    touch_later(root / "train")
    assert "ab holds no images" in refused(root, on_bad_image="skip")
