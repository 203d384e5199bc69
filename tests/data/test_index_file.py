"""The file of the image index: where it lies, and what happens where it is damaged."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data.index import VERSION
from tests import indexing
from tests.indexing import index_of, paint, refused
from tests.opening import open_at

root = indexing.root


def other_version(path: Path) -> None:
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **(arrays | {"version": VERSION + 1, "heights": arrays["heights"] * 2}))


def earlier_version(path: Path) -> None:
    """Version 2 noted only the images in CMYK."""
    with np.load(path) as file:
        arrays = dict(file)
    arrays["cmyk"] = arrays.pop("odd_colours")
    np.savez(path, **(arrays | {"version": 2}))


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


DAMAGES = [other_version, earlier_version, without_a_part, cut_short, changed, encrypted, emptied, text]


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_index_that_cannot_be_used_is_built_anew(root: Path, damage: Callable[[Path], None]) -> None:
    (file,) = root.glob(".*.npz")
    damage(file)
    assert open_at(root, build=False) is None
    index = index_of(root)
    assert (len(index), index.heights.tolist()) == (4, [6] * 4)
    assert open_at(root, build=False) is not None


def test_the_log_says_why_an_index_of_an_earlier_version_is_built_again(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (file,) = root.glob(".*.npz")
    earlier_version(file)
    with caplog.at_level("INFO"):
        index_of(root)
    place = root / "train"
    assert caplog.messages == [f"{place} was indexed by another version of this project", f"indexing {place} (once)"]


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
