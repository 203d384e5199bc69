"""One zip file for a split, as the authors of Swin and LipsFormer read ImageNet: ``train.zip`` and ``train_map.txt``.

``data.root`` is the folder with ``train.zip`` and ``val.zip``, or one zip file that holds ``train/`` and ``val/``.
A map lists the images, ``path<tab>class number``; without a map, folders in the zip file are the classes.
"""

import os
import struct
import zipfile
import zlib
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.config import DataConfig
from data.errors import DataError
from data.index import ImageIndex, Pieces, cached_index, scanned
from data.index.headers import EXTENSIONS, Header, read_header, read_header_at
from data.sources.byte_ranges import ByteRangeSource, shard_columns
from data.sources.source import Advice

LOCAL_HEADER = 30  # bytes before a member's name; the lengths of its name and extra field are the last four
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
DAMAGED = (OSError, zipfile.BadZipFile, NotImplementedError, ValueError, struct.error)


class Member(NamedTuple):
    """An image in a zip file."""

    offset: int  # of its content, in bytes
    stored: int  # bytes in the zip file
    length: int  # bytes of the image
    deflated: bool


class ZipSource(ByteRangeSource):
    """The images of a split in a zip file."""

    form = "a zip file"
    advice = Advice(
        at_start="repair it where the zip file is made",
        in_run="copy the zip file again",
        changed="run touch on the zip file, so that it is indexed again",
    )

    @classmethod
    def fits(cls, cfg: DataConfig, split: str) -> bool:
        """See :class:`data.sources.Source`."""
        return cfg.root is not None and _file(Path(cfg.root), split).is_file()

    @classmethod
    def open(cls, cfg: DataConfig, split: str, build: bool = True) -> "ZipSource | None":
        """See :class:`data.sources.Source`."""
        root = Path(str(cfg.root))
        file = _file(root, split)
        listed = root / f"{split}_map.txt" if root.is_dir() else None
        listed = listed if listed is not None and listed.is_file() else None
        state = np.array([t for path in (file, listed) if path for t in (path.stat().st_mtime_ns, path.stat().st_size)])

        def is_current(index: ImageIndex) -> bool:
            return np.array_equal(index.extra["state"], state)

        def scan(pieces: Pieces) -> ImageIndex:
            index = _scanned(file, split, listed, pieces)
            return replace(index, extra={**index.extra, "state": state})

        index = cached_index(cfg, split, is_current, scan, build)
        return None if index is None else cls(file, index)

    def file(self, number: int) -> Path:
        """See :class:`data.sources.byte_ranges.ByteRangeSource`."""
        return self.place

    def files(self) -> list[Path]:
        """See :class:`data.sources.byte_ranges.ByteRangeSource`."""
        listed = self.place.with_name(f"{self.place.stem}_map.txt")
        return [self.place, *([listed] if listed.is_file() else [])]

    def stretch(self, i: int) -> tuple[int, int]:
        """See :class:`data.sources.byte_ranges.ByteRangeSource`."""
        return int(self.index.extra["shard_offsets"][i]), int(self.index.extra["stored_lengths"][i])

    def content(self, i: int) -> bytes:
        """See :class:`data.sources.EncodedSource`."""
        content = super().content(i)
        return _inflated(content) if self.index.extra["deflated"][i] else content


def _file(root: Path, split: str) -> Path:
    return root if root.suffix.lower() == ".zip" else root / f"{split}.zip"


def _inflated(content: bytes) -> bytes:
    """The uncompressed content of a member; an ``OSError`` if it is damaged."""
    try:
        return zlib.decompress(content, -zlib.MAX_WBITS)
    except zlib.error as error:
        raise OSError(f"the zip file is damaged: {error}") from error


def _scanned(file: Path, split: str, listed: Path | None, pieces: Pieces) -> ImageIndex:
    """Read the directory of a zip file, and the header of each image.

    Raises:
        DataError: if the zip file is damaged or locked, or holds not what the map lists.
    """
    infos = _images(file, split)
    members = _by_class_number(infos, listed) if listed is not None else _by_folder(infos, file)
    classes: dict[str, list[str]] = {}
    for path in members:
        classes.setdefault(path.split("/", 1)[0], []).append(path)
    number_first = sorted(classes, key=int) if listed is not None else sorted(classes)
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        places = {path: _place(descriptor, info, file) for path, info in members.items()}

        def header(path: str) -> Header | str:
            member = places[path]
            if not member.deflated:
                return read_header_at(descriptor, member.offset, member.length)
            try:
                return read_header(BytesIO(_inflated(os.pread(descriptor, member.stored, member.offset))))
            except OSError as error:
                return f"cannot be read ({error})"

        index = scanned(file, ((name, sorted(classes[name])) for name in number_first), header, pieces)
    finally:
        os.close(descriptor)
    found = [places[path] for path in index.paths]
    columns = shard_columns(
        sizes=np.array([file.stat().st_size], dtype=np.int64),
        numbers=np.zeros(len(found), dtype=np.int32),
        offsets=np.array([member.offset for member in found], dtype=np.int64),
    )
    stored = np.array([member.stored for member in found], dtype=np.int64)
    deflated = np.array([member.deflated for member in found], dtype=bool)
    return replace(index, extra={**columns, "stored_lengths": stored, "deflated": deflated})


def _images(file: Path, split: str) -> dict[str, zipfile.ZipInfo]:
    """The images in a zip file by path; without ``<split>/`` where all of them begin with it.

    Raises:
        DataError: if it is damaged, holds no images of the split, or one of them cannot be read without a password.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            infos = [i for i in archive.infolist() if os.path.splitext(i.filename)[1].lower() in EXTENSIONS]
    except DAMAGED as error:
        raise DataError(f"{file} is damaged or cut short ({error}): copy or download it again") from error
    below = [info for info in infos if info.filename.startswith(f"{split}/")]
    if file.stem != split and not below:
        raise DataError(f"{file} holds no images in {split}/: it must hold {split}/<class>/<image>")
    prefix = f"{split}/" if below else ""
    found: dict[str, zipfile.ZipInfo] = {}
    for info in below or infos:
        path = info.filename.removeprefix(prefix)
        if path in found:
            raise DataError(f"{file} holds {info.filename} twice: write it again")
        if info.flag_bits & 1 or info.compress_type not in METHODS:
            raise DataError(
                f"{file}: {info.filename} is encrypted or compressed in another way than deflate: write it again "
                "with zip -0"
            )
        found[path] = info
    return found


def _by_folder(infos: dict[str, zipfile.ZipInfo], file: Path) -> dict[str, zipfile.ZipInfo]:
    if flat := [path for path in infos if "/" not in path]:
        raise DataError(
            f"{file}: {flat[0]} is in no class folder: put {file.stem}_map.txt, with lines 'path<tab>class number', "
            "beside the zip file, or write it again with <class>/<image>"
        )
    return infos


def _by_class_number(infos: dict[str, zipfile.ZipInfo], listed: Path) -> dict[str, zipfile.ZipInfo]:
    """The images that a map lists, as ``<class number>/<path>``.

    Raises:
        DataError: if a line is no path and number, or names an image that the zip file does not hold.
    """
    found: dict[str, zipfile.ZipInfo] = {}
    try:
        lines = listed.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{listed} cannot be read ({error}): copy it again") from error
    for number, line in enumerate(lines, 1):
        path, _, label = line.rpartition("\t")
        path = path.removeprefix("./").lstrip("/")
        if not (path and label.strip().isdecimal()):
            raise DataError(f"{listed}, line {number}: '{line[:60]}' is not 'path<tab>class number': repair it")
        if path not in infos:
            raise DataError(f"{listed}, line {number}: the zip file beside it does not hold {path}: copy both again")
        found[f"{int(label)}/{path}"] = infos[path]
    return found


def _place(descriptor: int, info: zipfile.ZipInfo, file: Path) -> Member:
    """Where the content of a member begins: after its local header, whose name and extra field have any length."""
    header = os.pread(descriptor, LOCAL_HEADER, info.header_offset)
    if len(header) < LOCAL_HEADER or not header.startswith(b"PK\3\4"):
        raise DataError(f"{file} is damaged at {info.filename}: copy or download it again")
    name, extra = struct.unpack_from("<HH", header, LOCAL_HEADER - 4)
    begin = info.header_offset + LOCAL_HEADER + name + extra
    return Member(begin, info.compress_size, info.file_size, info.compress_type == zipfile.ZIP_DEFLATED)
