"""The user's cache folder, and the archives unpacked into it."""

import hashlib
import logging
import os
import shutil
import tarfile
import tempfile
from pathlib import Path

from data.errors import DataError

log = logging.getLogger(__name__)


def cache_dir() -> Path:
    """``$XDG_CACHE_HOME/coldstart``, or ``~/.cache/coldstart``."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG specification: a relative path is invalid and ignored.
    return (base if base.is_absolute() else Path.home() / ".cache") / "coldstart"


def unpacked(archive: Path, sha256: str, unpack: bool = True) -> Path:
    """The folder that holds an archive's content, unpacked on first use.

    Args:
        archive: a tar file.
        sha256: its digest; another digest is an error, so a damaged or exchanged file is never unpacked.
        unpack: whether to unpack where that has not been done.

    Raises:
        DataError: if the archive is missing or damaged, or the cache cannot be written.
    """
    target = cache_dir() / f"{archive.name.split('.')[0]}-{sha256[:12]}"
    if target.is_dir() or not unpack:
        return target
    if not archive.is_file():
        raise DataError(f"the archive {archive} is missing: set data.archive to where it lies")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != sha256:
        raise DataError(f"{archive} is damaged (SHA-256 {digest[:12]}… instead of {sha256[:12]}…): fetch it again")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(scratch, filter="data")
            scratch.chmod(0o755)
            _rename_unless_there(scratch, target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"cannot unpack {archive.name} into {target.parent} ({error.strerror}): "
            "set XDG_CACHE_HOME to a folder with space that can be written"
        ) from error
    log.info("unpacked %s into %s", archive.name, target)
    return target


def _rename_unless_there(source: Path, target: Path) -> None:
    """Rename a folder; another process that was faster has made the same one."""
    try:
        source.rename(target)
    except OSError:
        if not target.is_dir():
            raise
