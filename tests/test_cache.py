"""Archives in the user's cache: what tests of the embedded set leave open."""

import hashlib
import multiprocessing
import os
import tarfile
from pathlib import Path

import pytest

from data.cache import cache_dir, unpacked
from data.errors import DataError


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """A small archive and its digest, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "file.txt").write_text("content")
    path = tmp_path / "some.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for i in range(200):
            tar.add(tmp_path / "file.txt", f"folder/{i}.txt")
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_cache_lies_in_the_home_folder_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir() == tmp_path / ".cache" / "coldstart"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_dir() == tmp_path / ".cache" / "coldstart"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_dir() == tmp_path / "cache" / "coldstart"


def test_a_missing_archive_is_refused(archive: tuple[Path, str]) -> None:
    archive[0].unlink()
    with pytest.raises(DataError, match=r"some\.tar\.gz is missing: set data\.archive"):
        unpacked(*archive)


def test_an_archive_unpacked_before_is_not_needed_any_more(archive: tuple[Path, str]) -> None:
    target = unpacked(*archive)
    archive[0].unlink()
    assert unpacked(*archive) == target
    assert (target / "folder" / "7.txt").read_text() == "content"


def test_nothing_is_unpacked_where_not_asked_for(archive: tuple[Path, str]) -> None:
    assert not unpacked(*archive, unpack=False).exists()
    assert not cache_dir().exists()


def test_a_cache_that_cannot_be_written_is_refused(
    archive: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file.txt"))
    with pytest.raises(DataError, match=r"set XDG_CACHE_HOME") as caught:
        unpacked(*archive)
    assert "\n" not in str(caught.value)


def test_processes_that_unpack_at_the_same_time_do_not_disturb_one_another(archive: tuple[Path, str]) -> None:
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(4)

    def unpack() -> None:
        barrier.wait()
        target = unpacked(*archive)
        os._exit(len(list((target / "folder").iterdir())) != 200)

    processes = [fork.Process(target=unpack) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert [path.name for path in cache_dir().iterdir()] == [unpacked(*archive).name]
