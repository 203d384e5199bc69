"""Writes a prepared split, one class folder or shard at a time. Each gets its final name only when it is complete."""

import io
import os
import secrets
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from data.errors import DataError
from data.index.headers import BROKEN, decoded, read_header
from data.index.rows import Rows
from data.index.tars import NAMES
from data.prepare.originals import ClassImages, Member
from data.prepare.shard_index import read_shard
from data.prepare.target import Part

PARTIAL = ".partial-"
QUALITY = 95  # of JPEGs that are written smaller


@dataclass(frozen=True)
class Written:
    """What a job has written, or what was already there.

    Attributes:
        left_out: a line about each file of the source that is no image of the set.
        kept: whether it was already there.
        rows: of a shard, what the index needs of it.
    """

    left_out: list[str]
    kept: bool = False
    rows: Rows | None = None


def write_class_folder(part: Part, shorter_side: int | None) -> Written:
    """Write the images of a class to its folder, unless that folder exists.

    Raises:
        DataError: if an image cannot be read or written.
    """
    if part.path.is_dir():
        return Written([], kept=True)
    (source,) = part.sources
    found, left_out = _listing(source)
    with _partial(part.path) as scratch:
        for member in found:
            path = scratch / os.path.relpath(member.path, source.name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(shrunk(member.read(), shorter_side))
        # A folder that exists after a power cut must be complete. One sync covers all files; there may be 1300.
        os.sync()
    return Written(left_out)


def write_shard(part: Part, shorter_side: int | None) -> Written:
    """Write the images of some classes to a shard, unless it exists, and read what the index needs from it.

    The same images give the same bytes.

    Raises:
        DataError: if an image cannot be read or written.
    """
    left_out: list[str] = []
    kept = part.path.is_file()
    if not kept:
        with new_tar(part.path) as tar:
            for source in part.sources:
                found, others = _listing(source)
                left_out += others
                for member in found:
                    write_member(tar, member.path, shrunk(member.read(), shorter_side))
    return Written(left_out, kept, read_shard(part.path))


def _listing(source: ClassImages) -> tuple[list[Member], list[str]]:
    found, others = source.listing()
    if not found:
        raise DataError(f"the source holds no images of class {source.name}: it is damaged, or it is another file")
    return found, others


@contextmanager
def new_tar(path: Path) -> Iterator[tarfile.TarFile]:
    """A tar file to write to. It gets its name when everything is written and on the disk."""
    with _partial(path) as scratch, open(scratch, "wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT, **NAMES) as tar:
            yield tar
        file.flush()
        os.fsync(file.fileno())


def write_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file to a tar file, without date and owner."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def remove_partial(folder: Path) -> None:
    """Remove the incomplete files that killed writers have left in a split's folder."""
    for path in folder.glob(f"{PARTIAL}*"):
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _partial(target: Path) -> Iterator[Path]:
    """A temporary path to write to. It is renamed to ``target`` when everything is written."""
    scratch = target.with_name(f"{PARTIAL}{secrets.token_hex(4)}-{target.name}")
    try:
        yield scratch
        scratch.rename(target)
    except OSError as error:
        raise DataError(
            f"cannot write {target} ({error.strerror}): free space or choose another --to, and repeat the command"
        ) from error
    finally:
        _remove(scratch)


def shrunk(content: bytes, shorter_side: int | None) -> bytes:
    """The bytes of an image: unchanged, or a smaller JPEG if its shorter side is longer than ``shorter_side``."""
    if shorter_side is None:
        return content
    header = read_header(io.BytesIO(content))
    if isinstance(header, str) or min(header.height, header.width) <= shorter_side:
        return content
    try:
        image = decoded(content).convert("RGB")
    except BROKEN:
        return content  # a damaged image is kept as it is; the check names it
    scale = shorter_side / min(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    smaller = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(smaller, format="JPEG", quality=QUALITY)
    return smaller.getvalue()
