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

import numpy as np

from data.config import DataConfig
from data.errors import DataError
from data.index import ImageIndex, Listed, Pieces, cached_index
from data.index.arrays import LOCAL_HEADER
from data.index.building import scanned_rows
from data.index.headers import EXTENSIONS, Header, read_header, read_header_at
from data.index.rows import joined_index
from data.sources.byte_ranges import ByteRangeSource, refuse_strange_ranges, shard_columns
from data.sources.file_sets import holds_something
from data.sources.source import Advice

LONGEST_NUMBER = 100  # characters of a class number; Python refuses to convert thousands of digits
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
LARGEST = 2**30  # bytes of an image: more than Pillow decodes
BEGINNING = 2**24  # bytes that surely hold an image's header
PIECE = 2**20  # bytes that are inflated at once
DAMAGED = (OSError, zipfile.BadZipFile, NotImplementedError, ValueError, struct.error)


class ZipSource(ByteRangeSource):
    """The images of a split in a zip file."""

    form = "a zip file"
    advice = Advice(
        at_start="repair it where the zip file is made",
        in_run="copy the zip file again",
        changed="run touch on the zip file, so that it is indexed again",
    )

    def __init__(self, place: Path, index: ImageIndex, listed: Path | None = None):
        super().__init__(place, index)
        self.listed = listed  # the map

    @classmethod
    def fits(cls, cfg: DataConfig, split: str) -> bool:
        """See :class:`data.sources.Source`; a zip file beside a folder of images is not looked at."""
        if cfg.root is None or not _file(root := Path(cfg.root), split).is_file():
            return False
        return root.is_file() or not holds_something(root / split)

    @classmethod
    def open(cls, cfg: DataConfig, split: str, build: bool = True) -> "ZipSource | None":
        """See :class:`data.sources.Source`."""
        root = Path(str(cfg.root))
        file = _file(root, split)
        named = file.with_name(f"{split}_map.txt")
        listed = named if named.is_file() else None
        state = np.array([t for path in (file, listed) if path for t in (path.stat().st_mtime_ns, path.stat().st_size)])

        def is_current(index: ImageIndex) -> bool:
            refuse_strange_ranges(index)
            deflated = index.extra["deflated"]
            is_whole = deflated.dtype == bool and deflated.shape == index.extra["stored_lengths"].shape
            return is_whole and np.array_equal(index.extra["state"], state)

        def scan(pieces: Pieces) -> ImageIndex:
            index = _scanned(file, split, listed, pieces, str(state.tolist()))
            return replace(index, extra={**index.extra, "state": state})

        index = cached_index(cfg, split, is_current, scan, build)
        return None if index is None else cls(file, index, listed)

    def file(self, number: int) -> Path:
        """See :class:`data.sources.byte_ranges.ByteRangeSource`."""
        return self.place

    def files(self) -> list[Path]:
        """See :class:`data.sources.byte_ranges.ByteRangeSource`."""
        return [self.place, *([self.listed] if self.listed is not None else [])]

    def byte_range(self, i: int) -> tuple[int, int]:
        """See :class:`data.sources.byte_ranges.ByteRangeSource`."""
        return int(self.index.extra["shard_offsets"][i]), int(self.index.extra["stored_lengths"][i])

    def content(self, i: int) -> bytes:
        """See :class:`data.sources.EncodedSource`."""
        content = super().content(i)
        if not self.index.extra["deflated"][i]:
            return content
        assert self.index.lengths is not None
        return _inflated(content, int(self.index.lengths[i]))


def _file(root: Path, split: str) -> Path:
    return root if root.suffix.lower() == ".zip" else root / f"{split}.zip"


def _inflated(content: bytes, size: int, most: int | None = None) -> bytes:
    """The uncompressed content of a member, or the first ``most`` bytes of it.

    A member may be a thousand times as large as its compressed form. So it is inflated piece by piece, and what is
    beyond its size or ``most`` is not kept.

    Raises:
        OSError: if it is damaged, or is not of this size.
    """
    inflating, kept, length = zlib.decompressobj(-zlib.MAX_WBITS), bytearray(), 0
    try:
        while not inflating.eof and length <= size:
            found = inflating.decompress(content, PIECE)
            content, length = inflating.unconsumed_tail, length + len(found)
            if not (found or content):
                break
            kept += found if most is None else found[: max(0, most - len(kept))]
    except zlib.error as error:
        raise OSError(f"the zip file is damaged: {error}") from error
    if length != size or not inflating.eof:
        raise OSError("the zip file is damaged: the image has another size")
    return bytes(kept)


def _scanned(file: Path, split: str, listed: Path | None, pieces: Pieces, stamp: str) -> ImageIndex:
    """Read the directory of a zip file, and the header of each image.

    Raises:
        DataError: if the zip file is damaged or locked, or holds not what the map lists.
    """
    infos = _images(file, split)
    members = _by_class_number(infos, listed) if listed is not None else _by_folder(infos, file, split)
    classes: dict[str, list[str]] = {}
    for path in members:
        classes.setdefault(path.split("/", 1)[0], []).append(path)
    names = sorted(classes, key=int) if listed is not None else sorted(classes)
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        listing = (Listed(name, sorted(classes[name]), stamp) for name in names)
        rows = scanned_rows(file, listing, lambda path: _header(descriptor, members[path], file), pieces)
    finally:
        os.close(descriptor)
    index = joined_index(rows)
    found = [members[path] for path in index.paths]
    columns = shard_columns(
        sizes=np.array([file.stat().st_size], dtype=np.int64),
        numbers=np.zeros(len(found), dtype=np.int32),
        offsets=np.concatenate([part.offsets for part in rows]) if rows else np.zeros(0, dtype=np.int64),
    )
    stored = np.array([info.compress_size for info in found], dtype=np.int64)
    deflated = np.array([info.compress_type == zipfile.ZIP_DEFLATED for info in found], dtype=bool)
    return replace(index, extra={**columns, "stored_lengths": stored, "deflated": deflated})


def _header(descriptor: int, info: zipfile.ZipInfo, file: Path) -> Header | str:
    """The header of an image. Its content begins after the member's local header, whose name and extra vary."""
    if info.file_size > LARGEST:
        return f"has {info.file_size / 2**30:.0f} GiB, too many for an image"
    try:
        local = os.pread(descriptor, LOCAL_HEADER, info.header_offset)
        if len(local) < LOCAL_HEADER or not local.startswith(b"PK\3\4"):
            raise DataError(f"{file} is damaged at {info.filename}: copy or download it again")
        begin = info.header_offset + LOCAL_HEADER + sum(struct.unpack_from("<HH", local, LOCAL_HEADER - 4))
        is_stored = info.compress_type == zipfile.ZIP_STORED
        # A damaged directory may say any size, also one that fills the memory.
        reaches_beyond = begin + info.compress_size > os.fstat(descriptor).st_size
        if reaches_beyond or (is_stored and info.compress_size != info.file_size):
            return "cannot be read (the zip file is damaged: the image cannot have the size that it says)"
        if is_stored:
            return read_header_at(descriptor, begin, info.file_size)
        stored = os.pread(descriptor, info.compress_size, begin)
        found = read_header(BytesIO(_inflated(stored, info.file_size, most=BEGINNING)))
    except (OSError, OverflowError) as error:  # the second: a place that no file has
        return f"cannot be read ({error})"
    return found._replace(offset=begin, length=info.file_size) if isinstance(found, Header) else found


def _images(file: Path, split: str) -> dict[str, zipfile.ZipInfo]:
    """The images in a zip file by path, without ``<split>/``.

    In ``<split>.zip`` this folder is around all images or around none. A zip file of another name holds several splits.

    Raises:
        DataError: if it is damaged, holds no images of the split, or one of them cannot be read without a password.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            infos = [info for info in archive.infolist() if _is_image(info.filename)]
    except DAMAGED as error:
        raise DataError(f"{file} is damaged or cut short ({error}): copy or download it again") from error
    below = [info for info in infos if info.filename.startswith(f"{split}/")]
    if file.stem == split and len(below) < len(infos):
        below = []
    elif not below:
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


def _is_image(path: str) -> bool:
    """Whether a member is named as an image, and is not one of the hidden files that some systems add."""
    is_hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))
    return not is_hidden and os.path.splitext(path)[1].lower() in EXTENSIONS


def _by_folder(infos: dict[str, zipfile.ZipInfo], file: Path, split: str) -> dict[str, zipfile.ZipInfo]:
    if flat := [path for path in infos if "/" not in path]:
        raise DataError(
            f"{file}: {flat[0]} is in no class folder: put {split}_map.txt, with lines 'path<tab>class number', "
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
        if not line.strip():
            continue
        path, _, label = line.rpartition("\t")
        path = path.removeprefix("./").lstrip("/")
        if not (path and label.strip().isdecimal() and len(label) <= LONGEST_NUMBER):
            raise DataError(f"{listed}, line {number}: '{line[:60]}' is not 'path<tab>class number': repair it")
        if path not in infos:
            raise DataError(f"{listed}, line {number}: the zip file beside it does not hold {path}: copy both again")
        found[f"{int(label)}/{path}"] = infos[path]
    if not found:
        raise DataError(f"{listed} lists no image: copy it again, or delete it if the zip file has class folders")
    return found
