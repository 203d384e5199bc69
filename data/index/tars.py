"""Reads tar files with any kind of members: where each member begins, and whether the file is complete."""

import tarfile
from collections.abc import Iterator
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Any

from data.errors import DataError, in_one_line

NAMES: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape"}  # keeps any file name unchanged
GZIP = b"\x1f\x8b"  # how a compressed file begins
END = bytes(tarfile.BLOCKSIZE)  # a tar file ends with blocks of zeros
LONGEST = 2**20  # bytes of a header: of a long name, or of attributes


class _Headers(BufferedReader):
    """A tar file of which only headers are read. A damaged one may say that it has more bytes than there is memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= LONGEST:
            raise tarfile.ReadError(f"a header has more than {LONGEST} bytes")
        return super().read(size)


def members(
    path: Path, start: int = 0, stop: int | None = None, remedy: str = "copy or download it again"
) -> Iterator[tarfile.TarInfo]:
    """The regular files in a tar file, or in a tar file inside it, from byte ``start`` to ``stop``.

    ``offset_data`` of each counts from the beginning of the outer file.

    Raises:
        DataError: if the file cannot be read, is no tar file, or ends too early.
    """
    try:
        with _Headers(FileIO(path), 4096) as file:  # a larger buffer would read the images
            file.seek(start)
            with tarfile.open(fileobj=file, mode="r:", **NAMES) as tar:
                for member in tar:
                    if tar.offset <= member.offset:  # tarfile would read the same member for ever
                        raise tarfile.ReadError("a member has a negative size")
                    if stop is not None and tar.offset > stop:
                        raise tarfile.ReadError("a tar file in it reaches beyond its end")
                    if member.isreg() and not member.issparse():
                        yield member
                file.seek(tar.offset)
                if file.read(tarfile.BLOCKSIZE) != END:
                    raise tarfile.ReadError("its end is missing")
    except (OSError, tarfile.TarError, ValueError, RecursionError) as error:  # the last: headers without end
        if path.is_file() and path.open("rb").read(2) == GZIP:
            raise DataError(f"{path} is compressed: unpack it with gzip, and name the result .tar") from error
        raise DataError(f"{path} is damaged or cut short ({in_one_line(error)}): {remedy}") from error
