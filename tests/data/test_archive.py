"""Archives in the user's cache: cases that the tests of the embedded set do not cover."""

import hashlib
import multiprocessing
import os
import shutil
import tarfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from data.errors import DataError
from data.storage.archive import MANIFEST, folder_of, is_complete, unpacked
from data.storage.cache import cache_dir


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """A small archive and its digest, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "file.txt").write_text("content")
    os.utime(tmp_path / "file.txt", (1e9, 1e9))
    path = tmp_path / "some.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for i in range(200):
            tar.add(tmp_path / "file.txt", f"folder/{i}.txt")
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_missing_archive_is_refused(archive: tuple[Path, str]) -> None:
    archive[0].unlink()
    with pytest.raises(DataError, match=r"some\.tar\.gz is missing: set data\.archive"):
        unpacked(*archive)


def test_an_archive_unpacked_before_is_not_needed_any_more(archive: tuple[Path, str]) -> None:
    target = unpacked(*archive)
    archive[0].unlink()
    assert unpacked(*archive) == target
    assert (target / "folder" / "7.txt").read_text() == "content"


def test_asking_whether_it_is_unpacked_does_not_unpack(archive: tuple[Path, str]) -> None:
    assert not is_complete(folder_of(*archive))
    assert not cache_dir().exists()
    assert is_complete(unpacked(*archive))


def without_a_file(folder: Path) -> None:
    (folder / "folder" / "7.txt").unlink()


def cut_short(folder: Path) -> None:
    os.truncate(folder / "folder" / "7.txt", 3)


def overwritten(folder: Path) -> None:
    (folder / "folder" / "7.txt").write_text("CONTENT")


def with_another_file(folder: Path) -> None:
    (folder / "folder" / "more.txt").write_text("content")


def without_its_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("content")


DAMAGES = [without_a_file, cut_short, overwritten, with_another_file, without_its_manifest, a_file]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_cache_that_is_not_as_it_was_unpacked_is_unpacked_anew(
    archive: tuple[Path, str], damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    target = unpacked(*archive)
    damage(target)
    assert not is_complete(target)
    assert unpacked(*archive) == target
    assert f"{target} has changed since it was unpacked" in caplog.text
    assert sorted(path.name for path in (target / "folder").iterdir()) == sorted(f"{i}.txt" for i in range(200))
    assert (target / "folder" / "7.txt").read_text() == "content"
    assert list(cache_dir().iterdir()) == [target]


def test_a_cache_of_another_user_is_refused(archive: tuple[Path, str]) -> None:
    target = unpacked(*archive)
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder to another user")
    os.chown(target, 12345, 12345)
    said = f"^{target} belongs to another user, number 12345, and is not trusted: set XDG_CACHE_HOME"
    with pytest.raises(DataError, match=said):
        is_complete(target)
    with pytest.raises(DataError, match=said):
        unpacked(*archive)


def test_what_other_programs_hide_in_it_is_no_change(archive: tuple[Path, str]) -> None:
    target = unpacked(*archive)
    (target / "folder" / ".DS_Store").write_text("")
    assert is_complete(target)


def link(member: tarfile.TarInfo) -> None:
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"


def device(member: tarfile.TarInfo) -> None:
    member.type = tarfile.CHRTYPE


def fifo(member: tarfile.TarInfo) -> None:
    member.type = tarfile.FIFOTYPE


def absolute(member: tarfile.TarInfo) -> None:
    member.name = "/tmp/outside.txt"


def above(member: tarfile.TarInfo) -> None:
    member.name = "folder/../../outside.txt"


@pytest.mark.parametrize("change", [link, device, fifo, absolute, above])
def test_members_that_are_no_files_inside_the_folder_are_refused(
    archive: tuple[Path, str], change: Callable[[tarfile.TarInfo], None], tmp_path: Path
) -> None:
    member = tarfile.TarInfo("folder/bad.txt")
    change(member)
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        tar.addfile(member)
    digest = hashlib.sha256((tmp_path / "evil.tar").read_bytes()).hexdigest()
    with pytest.raises(DataError, match=rf"holds {member.name}, which is not a file or folder inside it"):
        unpacked(tmp_path / "evil.tar", digest)
    assert not list(cache_dir().iterdir())
    assert not list(tmp_path.glob("**/outside.txt"))


def test_a_cache_that_cannot_be_written_is_refused(
    archive: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file.txt"))
    with pytest.raises(DataError, match=r"set XDG_CACHE_HOME") as caught:
        unpacked(*archive)
    assert "\n" not in str(caught.value)


def test_runs_that_find_it_changed_at_the_same_time_do_not_disturb_one_another(
    archive: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = unpacked(*archive)
    without_a_file(target)
    both, rename = threading.Barrier(2), Path.rename

    def slow(path: Path, to: Path) -> Path:
        if path == target:
            with suppress(threading.BrokenBarrierError):
                both.wait(1)
        moved = rename(path, to)
        if path == target:
            time.sleep(0.5)  # it is away, and the new one not there yet
        return moved

    monkeypatch.setattr(Path, "rename", slow)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda _: unpacked(*archive), range(2))) == [target] * 2
    assert is_complete(target) and list(cache_dir().iterdir()) == [target]


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
