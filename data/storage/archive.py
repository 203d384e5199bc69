"""Archives of images, unpacked into the user's cache folder."""

import hashlib
import logging
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from data.errors import DataError, in_one_line
from data.storage.cache import cache_dir, refuse_others
from data.storage.locks import only_one

log = logging.getLogger(__name__)

PROJECT = Path(__file__).resolve().parents[2]  # a relative data.archive starts here
MANIFEST = ".unpacked"  # in the folder of an archive; a line for each file: its size, modification time and name


def unpacked(archive: Path, sha256: str) -> Path:
    """The folder with an archive's content. It is unpacked on first use, and again if a file in the folder has changed.

    Args:
        archive: a tar file.
        sha256: its digest. Another digest is an error, so a damaged or replaced archive is never unpacked.

    Raises:
        DataError: if the archive is missing or damaged, holds anything but files and folders, or the cache cannot be
            written or belongs to another user.
    """
    target = folder_of(archive, sha256)
    if is_complete(target):
        return target
    if target.exists():
        log.warning("%s has changed since it was unpacked: unpacking it again", target)
    if not archive.is_file():
        raise DataError(f"the archive {archive} is missing: set data.archive to its path")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != sha256:
        raise DataError(
            f"{archive} is damaged (SHA-256 {digest[:12]}… instead of {sha256[:12]}…): get an undamaged copy"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with only_one(target.parent, "unpacks"):
            _replace(target, archive)
    except (OSError, tarfile.TarError) as error:
        raise DataError(
            f"cannot unpack {archive.name} into {target.parent} ({in_one_line(error)}): "
            "set XDG_CACHE_HOME to a writable folder with free space"
        ) from error
    log.info("unpacked %s into %s", archive.name, target)
    return target


def _replace(target: Path, archive: Path) -> None:
    if is_complete(target):
        return  # another process has unpacked it meanwhile
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        whole = Path(scratch) / "whole"
        _unpack(archive, whole)
        _put_in_place(whole, target, Path(scratch) / "before")


def folder_of(archive: Path, sha256: str) -> Path:
    """The folder that an archive is unpacked into."""
    return cache_dir() / f"{archive.name.split('.')[0]}-{sha256[:12]}"


def is_complete(folder: Path) -> bool:
    """Whether a folder holds what was unpacked into it: the names, sizes and times. No content is read.

    Raises:
        DataError: if it belongs to another user.
    """
    refuse_others(folder)
    try:
        return (folder / MANIFEST).read_text() == _listing(folder)
    except (OSError, UnicodeDecodeError):
        return False


def _listing(folder: Path) -> str:
    """The text of a manifest. It skips names that begin with a dot: they belong to other programs or to the index."""
    return "".join(sorted(f"{stat.st_size} {int(stat.st_mtime)} {name}\n" for name, stat in _files(str(folder))))


def _files(folder: str, prefix: str = "") -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _files(entry.path, f"{prefix}{entry.name}/")
            else:
                yield f"{prefix}{entry.name}", entry.stat()


def _unpack(archive: Path, folder: Path) -> None:
    """Write an archive's files by hand: the filters of ``extractall`` that refuse other members need Python 3.11.4."""
    folder.mkdir()
    with tarfile.open(archive) as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if path.is_absolute() or ".." in path.parts or not (member.isreg() or member.isdir()):
                raise DataError(
                    f"{archive} holds {member.name}, which is not a file or folder inside it: use another archive"
                )
            if member.isdir():
                (folder / path).mkdir(parents=True, exist_ok=True)
                continue
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            content = tar.extractfile(member)
            assert content is not None
            with content, open(folder / path, "wb") as file:
                shutil.copyfileobj(content, file)
            os.utime(folder / path, (member.mtime, member.mtime))
    (folder / MANIFEST).write_text(_listing(folder))


def _put_in_place(whole: Path, target: Path, before: Path) -> None:
    """Rename ``whole`` to ``target`` and an old ``target`` to ``before``, unless another process has done so."""
    if is_complete(target):
        return
    try:
        if target.exists():
            target.rename(before)
        whole.rename(target)
    except OSError:
        if not is_complete(target):
            raise
