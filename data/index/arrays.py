"""Named arrays in one file that processes map into their memory instead of reading it.

The file is an ordinary uncompressed ``.npz``; its arrays begin at multiples of 64 bytes. The processes of a machine
share the pages of a mapped file, and a page that is never used is never read. A process that has mapped a file keeps
it when the file is replaced.
"""

import filecmp
import mmap
import os
import secrets
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from tokenize import TokenError

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

ALIGNMENT = 64
LOCAL_HEADER = 30  # bytes before a zip member's name; the lengths of its name and extra field are the last four
PADDING = 0xD935  # id of the extra field that the tool zipalign pads with
# What a damaged file, or one that was made by hand, makes zipfile and numpy raise.
UNREADABLE = (
    *(OSError, LookupError, TypeError, ValueError, EOFError, RuntimeError, MemoryError),
    *(struct.error, zlib.error, zipfile.BadZipFile, TokenError),
)

Identity = tuple[int, int, int, int]  # of a file: device, inode, size, modification time


def write_arrays(path: Path, arrays: Mapping[str, NDArray]) -> None:
    """Write a file of arrays so that a reader sees either none or all of it.

    Equal arrays give equal files. A file that already has the same content is not replaced.
    """
    # A random name: several machines may write to one folder, and two containers may have the same process ids.
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(scratch, "wb") as file:
            with zipfile.ZipFile(file, "w") as archive:
                for name, array in arrays.items():
                    with archive.open(_member(name, file.tell()), "w") as out:
                        npy.write_array(out, np.asanyarray(array), allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        # Machines that index one folder at the same time must not replace the file that another one has mapped: some
        # network file systems do not keep a file that another machine replaces.
        if not (path.is_file() and filecmp.cmp(scratch, path, shallow=False)):
            os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def _member(name: str, place: int) -> zipfile.ZipInfo:
    """A zip member without a date, whose content begins at a multiple of the alignment."""
    member = zipfile.ZipInfo(f"{name}.npy")
    begin = place + LOCAL_HEADER + len(member.filename) + 4
    padding = -begin % ALIGNMENT
    member.extra = struct.pack("<HH", PADDING, padding) + bytes(padding)
    return member


class ArrayFile:
    """A mapped file of arrays.

    Args:
        path: the file.
        verify: whether to compare its content with its checksums.

    Attributes:
        arrays: the arrays by name; they are read-only.

    Raises:
        UNREADABLE: if the file is not such a file, or is damaged.
    """

    def __init__(self, path: Path, verify: bool = True):
        self.path = Path(os.path.abspath(path))
        with open(path, "rb") as file:
            self.identity = _identity(os.fstat(file.fileno()))
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
                for member in members:
                    if member.compress_type != zipfile.ZIP_STORED:  # first: a few bytes may be hours of zeros to check
                        raise ValueError(f"{member.filename} is compressed")
                if verify and (damaged := archive.testzip()):
                    raise ValueError(f"{damaged} is damaged")
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.arrays = {member.filename.removesuffix(".npy"): _array(content, member) for member in members}

    def is_current(self) -> bool:
        """Whether the path still names the file that is mapped."""
        try:
            return _identity(os.stat(self.path)) == self.identity
        except OSError:
            return False


def _identity(found: os.stat_result) -> Identity:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _array(content: mmap.mmap, member: zipfile.ZipInfo) -> NDArray:
    name, extra = struct.unpack_from("<HH", content, member.header_offset + LOCAL_HEADER - 4)
    content.seek(member.header_offset + LOCAL_HEADER + name + extra)
    if npy.read_magic(content) != (1, 0):
        raise ValueError(f"{member.filename} is in another format")
    shape, _, dtype = npy.read_array_header_1_0(content)
    if dtype.hasobject:
        raise ValueError(f"{member.filename} holds objects")
    return np.ndarray(shape, dtype, buffer=content, offset=content.tell())
