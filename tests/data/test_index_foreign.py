"""An index that came with the images and was not written by this project: it is built again or refused in one line."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from data.errors import DataError
from data.index.arrays import ArrayFile, write_arrays
from data.index.image_index import pack_texts
from data.sources import EncodedSource
from tests import indexing
from tests.archives import write_tars, write_zips
from tests.indexing import index_of, paths
from tests.opening import open_at, source_of
from tests.source_kinds import packed

root = indexing.root

FORMS = {"folder": lambda images, to: images, "tars": write_tars, "zip": write_zips, "shards": packed}


def arrays_of(file: Path) -> dict[str, NDArray]:
    return {name: np.array(array) for name, array in ArrayFile(file).arrays.items()}


def replaced(file: Path, **arrays: NDArray) -> None:
    """Write an index again with other arrays and right checksums."""
    write_arrays(file, arrays_of(file) | arrays)


def odd_forms(array: NDArray) -> Iterator[NDArray]:
    """Arrays that are not what was there."""
    yield np.array(7)
    yield np.array([[1, 2], [3, 4]])
    yield np.full(array.shape, -5)
    yield np.full(array.shape, 2**40)
    yield np.full(array.shape, 2**63 - 1)
    yield np.full(array.shape, np.nan)
    yield array[:-1] if array.ndim else np.array([3, 3])
    yield np.concatenate([array, array]) if array.ndim else np.array(1j)


@pytest.mark.parametrize("form", FORMS)
def test_no_array_of_an_index_leads_to_another_error(
    root: Path, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.sources.source.PAUSES", ())
    shutil.copytree(root / "train", root / "val")
    where = FORMS[form](root, tmp_path / "images")
    rows = len(source_of(where))
    file = where / "train" / "index.npz" if form == "shards" else next(where.glob(".*-train.npz"))
    good = arrays_of(file)
    for name, array in good.items():
        for odd in odd_forms(array):
            write_arrays(file, good | {name: odd})
            try:
                source = open_at(where, build=False)
            except DataError as error:
                assert str(where / "train") in str(error) and "\n" not in str(error)
                continue
            if isinstance(source, EncodedSource):  # nothing that reading needs was replaced
                assert all(source.read(i) for i in range(rows))


@pytest.mark.parametrize("path", ["../secret.png", "/etc/secret.png", "a/../../secret.png", "a/..", "a/\0.png"])
def test_a_path_out_of_the_folder_is_not_followed(root: Path, path: str, caplog: pytest.LogCaptureFixture) -> None:
    (file,) = root.glob(".*.npz")
    for place in range(4):
        names = ["a/1.png", "a/2.jpg", "b/3.png", "b/4.jpeg"]
        replaced(file, **pack_texts(paths=[*names[:place], path, *names[place + 1 :]]))
        assert open_at(root, build=False) is None
        assert f"the index {file} cannot be read (it names files outside the folder)" in caplog.text
    assert paths(index_of(root)) == names


def test_names_with_several_points_are_no_such_paths(root: Path) -> None:
    for name in ("..x.png", "x..png", "y...png"):
        (root / "train" / "a" / name.lstrip(".")).write_bytes((root / "train" / "a" / "1.png").read_bytes())
    assert len(index_of(root)) == 7
    assert open_at(root, build=False) is not None


def test_a_piece_of_an_interrupted_start_leads_nowhere_else(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.index.pieces.LEAST", 1)
    monkeypatch.setattr("data.index.pieces.Pieces.remove", lambda self: None)
    (file,) = root.glob(".*.npz")
    file.unlink()
    index_of(root)
    pieces = sorted(file.with_suffix(".pieces").iterdir())
    assert len(pieces) == 2
    for name, odd in (("targets", np.array([7, 7])), ("sizes", np.array([1, 2])), ("paths_ends", np.array([9, 3]))):
        replaced(pieces[0], **{name: odd})
        file.unlink()
        assert len(index_of(root)) == 4
    replaced(pieces[0], **pack_texts(paths=["../b/3.png", "../b/4.jpeg"]))
    file.unlink()
    assert paths(index_of(root)) == ["a/1.png", "a/2.jpg", "b/3.png", "b/4.jpeg"]
