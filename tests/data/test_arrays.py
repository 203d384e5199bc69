"""Files of arrays: a process maps all that was written or nothing, and keeps it when the file is replaced."""

import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from data.index.arrays import ALIGNMENT, UNREADABLE, ArrayFile, write_arrays

ARRAYS = {
    "version": np.array(3),
    "bytes": np.frombuffer(b"a path", dtype=np.uint8),
    "nothing": np.zeros(0, dtype=np.int64),
    "table": np.arange(12, dtype=np.int32).reshape(3, 4),
    "long": np.arange(10_000, dtype=np.int64),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_arrays(tmp_path / "new" / "arrays.npz", ARRAYS)
    return tmp_path / "new" / "arrays.npz"


def test_arrays_come_back_aligned_and_read_only(file: Path) -> None:
    found = ArrayFile(file).arrays
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert np.array_equal(found[name], array)
        assert found[name].ctypes.data % ALIGNMENT == 0
        assert not found[name].flags.writeable


def test_numpy_reads_the_file_too(file: Path) -> None:
    with np.load(file) as loaded:
        assert all(np.array_equal(loaded[name], array) for name, array in ARRAYS.items())


def test_equal_arrays_make_equal_files(file: Path) -> None:
    write_arrays(file.with_name("again.npz"), ARRAYS)
    assert file.with_name("again.npz").read_bytes() == file.read_bytes()


def test_a_replaced_file_stays_mapped_as_it_was(file: Path) -> None:
    before = ArrayFile(file)
    assert before.is_current()
    write_arrays(file, {name: array + 1 for name, array in ARRAYS.items()})
    assert not before.is_current()
    assert np.array_equal(before.arrays["long"], ARRAYS["long"])
    assert np.array_equal(ArrayFile(file).arrays["long"], ARRAYS["long"] + 1)
    file.unlink()
    assert np.array_equal(before.arrays["long"], ARRAYS["long"])
    assert os.listdir(file.parent) == []


def test_an_equal_file_is_not_replaced(file: Path) -> None:
    mapped = ArrayFile(file)
    write_arrays(file, ARRAYS)
    assert mapped.is_current()
    assert os.listdir(file.parent) == [file.name]


def test_nothing_is_left_where_writing_fails(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = file.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_arrays(file, {"other": np.zeros(3)})
    assert os.listdir(file.parent) == [file.name]
    assert file.read_bytes() == before


@pytest.mark.parametrize("place", [0.05, 0.5, 0.95])
def test_a_changed_byte_is_noticed(file: Path, place: float) -> None:
    content = bytearray(file.read_bytes())
    content[int(len(content) * place)] ^= 255
    file.write_bytes(content)
    with pytest.raises(UNREADABLE):
        ArrayFile(file)


def test_compressed_files_are_refused(file: Path) -> None:
    np.savez_compressed(file, long=ARRAYS["long"])
    with pytest.raises(ValueError, match="compressed"):
        ArrayFile(file)


def test_what_is_compressed_is_not_inflated(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few bytes may be hours of zeros."""
    np.savez_compressed(file, long=np.zeros(2**20))
    monkeypatch.setattr("zipfile.ZipFile.testzip", lambda archive: pytest.fail("the content was read"))
    with pytest.raises(ValueError, match="compressed"):
        ArrayFile(file)


@pytest.mark.parametrize("header", [b"-" * 9000 + b"1", b"(" * 9000, b"1+" * 4000 + b"1", b"{'shape': (" + b"9" * 5000])
def test_a_header_that_python_cannot_read_is_refused(file: Path, header: bytes) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("version.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header)
    with pytest.raises(UNREADABLE):
        ArrayFile(file)


def test_objects_are_refused(file: Path) -> None:
    np.savez(file, objects=np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="objects"):
        ArrayFile(file)


def test_a_pickle_of_arrays_needs_no_file(file: Path) -> None:
    arrays = ArrayFile(file).arrays
    copy = pickle.loads(pickle.dumps(arrays["long"]))
    file.unlink()
    assert np.array_equal(copy, ARRAYS["long"])
