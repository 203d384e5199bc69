"""Copies a data set of large files to a disk of the node itself before training (``data.stage_to``).

A start copies only what is missing or has changed. Every copy is read again and compared with what was read from the
source. The time of a file is kept, so the index of the source describes the copy, too.
"""

import hashlib
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from threading import Event
from typing import IO, Any

from tqdm import tqdm

from data.config import DataConfig
from data.errors import DataError
from data.index.building import index_beside
from data.sources import open_source
from data.sources.byte_ranges import ByteRangeSource
from data.sources.root import with_root
from data.storage.cache import refuse_others
from data.storage.locks import only_one

log = logging.getLogger(__name__)

SAME_TIME = 2.0  # seconds by which the times of a file and its copy may differ: some file systems keep no fractions
AT_ONCE = 4  # files copied at the same time: a network file system serves several faster than one
CHUNK = 16 * 2**20  # bytes
PARTIAL = ".coldstart-partial-"  # begins the name of a file that is not complete


@dataclass(frozen=True)
class Copy:
    """A file to be copied."""

    source: Path
    target: Path

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.source.stat().st_size

    @property
    def is_done(self) -> bool:
        """Whether the target has the size and the time of the source."""
        try:
            found, wanted = self.target.stat(), self.source.stat()
        except FileNotFoundError:
            return False
        return found.st_size == wanted.st_size and abs(found.st_mtime - wanted.st_mtime) < SAME_TIME


def staged(cfg: DataConfig) -> DataConfig:
    """The options that open the copy; the same options if ``data.stage_to`` is null."""
    if cfg.stage_to is None:
        return cfg
    return replace(cfg, root=str(_place(cfg)), index_dir=None, stage_to=None)


def stage(cfg: DataConfig, splits: Sequence[str]) -> None:
    """Copy what is missing of the splits. Call this in one process of each node.

    Raises:
        DataError: if the images are not in large files, or the copy does not fit, fails or differs from the source.
    """
    if cfg.stage_to is None:
        return
    copies, folder = _copies(cfg, splits), _folder(cfg)
    with only_one(folder, "copies") as is_alone:
        missing = [copy for copy in copies if not copy.is_done]
        for left in folder.rglob(f"{PARTIAL}*") if is_alone else ():  # a killed start has left it
            left.unlink()
        _refuse_full(folder, missing)
        if missing:
            log.info("copying %s to %s (once)", _root(cfg), folder)
        total = sum(copy.size for copy in missing)
        with (
            ThreadPoolExecutor(AT_ONCE) as pool,
            tqdm(total=total, desc="stage", unit="B", unit_scale=True, disable=None, leave=False) as bar,
        ):
            stop = Event()
            try:
                list(pool.map(lambda copy: _carry_out(copy, bar, stop), missing))
            finally:  # after an interrupt, too: a copy may take minutes
                stop.set()


def staging_check(cfg: DataConfig, splits: Sequence[str]) -> Callable[[], bool]:
    """A function that says whether the copy is complete, for processes that wait. It may be called once the splits are
    prepared, and opens them only once. If ``data.stage_to`` is null, it says yes.
    """

    @cache
    def copies() -> list[Copy]:
        return _copies(cfg, splits) if cfg.stage_to is not None else []

    return lambda: all(copy.is_done for copy in copies())


def _root(cfg: DataConfig) -> Path:
    """The folder or file to be copied."""
    return Path(str(with_root(cfg).root))


def _place(cfg: DataConfig) -> Path:
    """Where the copy is: the same for every run on these images, and another one for other images."""
    root = _root(cfg)
    number = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:12]
    return Path(os.path.abspath(os.path.expanduser(str(cfg.stage_to)))) / f"coldstart-{number}" / root.name


def _folder(cfg: DataConfig) -> Path:
    """The folder of the copy, which is this user's own."""
    folder = _place(cfg).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    if folder.is_symlink():
        raise DataError(f"{folder} is a link, and is not trusted: set data.stage_to to a folder of your own")
    refuse_others(folder, "set data.stage_to to a folder of your own")
    return folder


def _unwritable(path: Path, error: OSError) -> DataError:
    remedy = "free space there, set data.stage_to to another folder, or leave it out"
    return DataError(f"cannot write {path} ({error.strerror}): {remedy}")


def _copies(cfg: DataConfig, splits: Sequence[str]) -> list[Copy]:
    """All files to be copied, with the index of each split; the indexes are built if needed."""
    root, place = _root(cfg), _place(cfg)
    copies: list[Copy] = []
    for split in splits:
        source = open_source(replace(cfg, stage_to=None), split, says=False)
        if not isinstance(source, ByteRangeSource):
            assert source is not None
            raise DataError(
                f"data.stage_to copies large files, but the {split} images are in {source.layout}: "
                "leave data.stage_to out, or pack class folders with scripts/prepare_imagenet.py --layout shards"
            )
        copies += [
            Copy(file, place / file.relative_to(root) if root.is_dir() else place.with_name(file.name))
            for file in source.files()
        ]
        assert source.index.file is not None
        index = source.index.file.path
        if not any(copy.source == index for copy in copies):
            copies.append(Copy(index, index_beside(place, split, root.is_dir())))
    return list(dict.fromkeys(copies))  # both splits may lie in one file


def _refuse_full(folder: Path, missing: list[Copy]) -> None:
    outdated = sum(copy.target.stat().st_size for copy in missing if copy.target.is_file())
    needed, free = sum(copy.size for copy in missing) - outdated, shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"data.stage_to={folder.parent} has {free / 1e6:.0f} MB free, and the images need {needed / 1e6:.0f} MB "
            "more: free space there, set another folder, or leave data.stage_to out"
        )


def _carry_out(copy: Copy, bar: "tqdm[Any]", stop: Event) -> None:
    """Copy a file. It gets its name when the disk holds what was read from the source.

    Raises:
        DataError: if it cannot be read or written, or the copy differs.
    """
    scratch = copy.target.with_name(f"{PARTIAL}{secrets.token_hex(4)}-{copy.target.name}")
    try:
        copy.target.parent.mkdir(parents=True, exist_ok=True)
        copy.target.unlink(missing_ok=True)  # an outdated one would need space twice
        try:
            if _written(copy.source, scratch, bar, stop) != _digest(scratch):
                raise DataError(f"{scratch} does not hold what was written to it: the disk is damaged, use another one")
            shutil.copystat(copy.source, scratch)
            scratch.rename(copy.target)
        finally:
            scratch.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(copy.target, error) from error


def _written(source: Path, target: Path, bar: "tqdm[Any]", stop: Event) -> bytes:
    """Copy the content, and return its digest; the copy is on the disk then, and no longer in memory."""
    digest = hashlib.blake2b()
    with open(source, "rb") as file, open(target, "wb") as out:
        while chunk := _read(file):
            if stop.is_set():
                raise DataError(f"copying {source} was interrupted: the same command continues")
            out.write(chunk)
            digest.update(chunk)
            bar.update(len(chunk))
        out.flush()
        os.fsync(out.fileno())
        os.posix_fadvise(out.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return digest.digest()


def _read(file: IO[bytes]) -> bytes:
    try:
        return file.read(CHUNK)
    except OSError as error:
        raise DataError(f"{file.name} cannot be read ({error.strerror}): repair or replace it") from error


def _digest(path: Path) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").digest()
