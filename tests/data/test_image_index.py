"""Which differences between indexes change the fingerprint."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.index import are_few_changed, differing
from data.index.arrays import write_arrays
from tests.indexing import index_of, paint, touch_later
from tests.opening import source_of


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes with one image each."""
    for name in ("a/1.png", "b/3.png"):
        paint(tmp_path / "train" / name)
    return tmp_path


def test_fingerprint_tells_other_sizes_apart_and_says_which(root: Path) -> None:
    first = index_of(root).fingerprint()
    paint(root / "train" / "a" / "1.png", 9, 6)
    touch_later(root / "train" / "a")
    assert differing(first, index_of(root).fingerprint()) == "heights or widths"
    Image.new("RGB", (8, 6), (1, 2, 3)).save(root / "train" / "a" / "1.png", compress_level=0)
    touch_later(root / "train" / "a")
    assert differing(first, index_of(root).fingerprint()) == "file sizes"
    paint(root / "train" / "a" / "1.png").rename(root / "train" / "a" / "0.png")
    touch_later(root / "train" / "a")
    assert differing(first, index_of(root).fingerprint()) == "names or classes"


def test_what_was_written_before_sizes_were_kept_is_still_of_the_same_images(root: Path) -> None:
    index = index_of(root)
    digest = hashlib.sha256(b"a\0b")
    for array in (index.paths.blob, index.paths.ends, index.targets):
        digest.update(array.tobytes())
    assert differing(digest.hexdigest()[:16], index.fingerprint()) is None
    (file,) = root.glob(".*.npz")
    with np.load(file) as arrays:
        without = {name: arrays[name] for name in arrays.files if name != "lengths"}
    write_arrays(file, without)
    old = source_of(root, build=False).index
    assert old.lengths is None
    assert differing(old.fingerprint(), index.fingerprint()) is None
    assert differing(index.fingerprint(), old.fingerprint()) is None


def test_a_few_files_of_other_sizes_are_repaired_ones(root: Path) -> None:
    for number in range(10, 24):
        paint(root / "train" / "a" / f"{number}.png")
    index = index_of(root)
    assert index.lengths is not None
    first = index.fingerprint()
    for changed, is_few in ((0, False), (1, True), (2, True), (3, False)):  # of 16 images
        lengths = index.lengths.copy()
        lengths[:changed] += 1
        second = replace(index, lengths=lengths).fingerprint()
        assert are_few_changed(first, second) == is_few
        assert differing(first, second) == ("file sizes" if changed == 3 else None)
    before = "-".join(first.split("-")[:3])  # as written before the sizes had parts
    assert differing(before, second) == "file sizes" and not are_few_changed(before, second)
