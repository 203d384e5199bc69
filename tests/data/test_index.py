"""What the image index holds."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.sources.synthetic import SyntheticSource
from tests import indexing
from tests.indexing import index_of, paint, paths
from tests.opening import source_of

root = indexing.root


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


@pytest.mark.parametrize("nested", ["deep/er", "like-an-image.jpg"])
def test_nested_folders_belong_to_their_class(tmp_path: Path, nested: str) -> None:
    paint(tmp_path / "train" / "a" / nested / "1.png", 3, 4)
    index = index_of(tmp_path)
    assert index.classes == ["a"]
    assert paths(index) == [f"a/{nested}/1.png"]
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
        assert [len(part) for part in index.fingerprint().split("-")] == [16, 16, 16, 4]


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
