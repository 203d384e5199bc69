"""Small image folders and their indexes."""

import os
from pathlib import Path

import pytest
from PIL import Image

from data.errors import DataError
from data.index import ImageIndex
from tests.opening import open_at, source_of


def paint(path: Path, width: int = 8, height: int = 6) -> Path:
    """Write a small image; the file name sets the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (200, 30, 60)).save(path)
    return path


def touch_later(folder: Path) -> None:
    """Move the modification time on, so that the change is visible at any clock resolution of the file system."""
    later = os.stat(folder).st_mtime_ns + 1_000_000
    os.utime(folder, ns=(later, later))


def index_of(root: Path, split: str = "train", **options) -> ImageIndex:
    return source_of(root, split, **options).index


def paths(index: ImageIndex) -> list[str]:
    return list(index.paths)


def refused(root: Path, split: str = "train", **options) -> str:
    """The one-line message with which the folder is refused."""
    with pytest.raises(DataError) as caught:
        open_at(root, split, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes with two images each, indexed. A test file that uses this must bind it to a name of its own."""
    for name in ("a/1.png", "a/2.jpg", "b/3.png", "b/4.jpeg"):
        paint(tmp_path / "set" / "train" / name)
    index_of(tmp_path / "set")
    return tmp_path / "set"
