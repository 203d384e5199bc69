"""Images that are byte ranges of a few large files, such as tar files.

Reading needs no library: any image of any file can be read at any time, so images come in the same order as from a
folder.
"""

import os
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import DataError
from data.index import ImageIndex
from data.index.image_index import whole_numbers
from data.sources.source import EncodedSource


def shard_columns(
    sizes: NDArray[np.int64], numbers: NDArray[np.int32], offsets: NDArray[np.int64]
) -> dict[str, NDArray]:
    """The columns that the index has in addition to those of every index.

    Args:
        sizes: bytes of each large file.
        numbers: number of the large file that holds each image.
        offsets: where each image begins in it, in bytes.
    """
    return {"shard_sizes": sizes, "shard_numbers": numbers, "shard_offsets": offsets}


def refuse_strange_ranges(index: ImageIndex) -> None:
    """Refuse columns that cannot be those of :func:`shard_columns`.

    Raises:
        UNREADABLE: if they are damaged, or were made by another program.
    """
    extra, count = index.extra, len(index)
    sizes = whole_numbers(extra, "shard_sizes", len(extra["shard_sizes"]))
    numbers = whole_numbers(extra, "shard_numbers", count, len(sizes) - 1)
    lengths = whole_numbers(extra, "stored_lengths", count) if "stored_lengths" in extra else index.lengths
    if (whole_numbers(extra, "shard_offsets", count) > sizes[numbers] - lengths).any():  # a sum might be too large
        raise ValueError("its images lie beyond the ends of their files")


class ByteRangeSource(EncodedSource):
    """Images in a few large files, each of which stays open.

    Args:
        place: the split, for messages.
        index: the index of its images, with the columns of :func:`shard_columns`.
    """

    def __init__(self, place: Path, index: ImageIndex):
        self.place = Path(os.path.abspath(place))
        self.index = index
        self._start()

    def _start(self) -> None:
        self._open: dict[int, int] = {}
        self._lock = Lock()

    @abstractmethod
    def file(self, number: int) -> Path:
        """The large file of this number."""

    def files(self) -> list[Path]:
        """All files that opening and reading the source needs, without an index that can be built again."""
        return [self.file(number) for number in range(len(self.index.extra["shard_sizes"]))]

    def name(self, i: int) -> str:
        """See :class:`data.sources.Source`."""
        return f"{self.shard(i)}: {self.index.paths[i]}"

    def shard(self, i: int) -> Path:
        """The large file that holds image ``i``."""
        return self.file(int(self.index.extra["shard_numbers"][i]))

    def byte_range(self, i: int) -> tuple[int, int]:
        """Where image ``i`` begins in its large file, and its length there, in bytes."""
        assert self.index.lengths is not None
        return int(self.index.extra["shard_offsets"][i]), int(self.index.lengths[i])

    def content(self, i: int) -> bytes:
        """See :class:`data.sources.EncodedSource`."""
        offset, length = self.byte_range(i)
        found = os.pread(self._descriptor(i), length, offset)
        if len(found) < length:
            raise OSError("its file has been cut short")
        return found

    def _descriptor(self, i: int) -> int:
        number = int(self.index.extra["shard_numbers"][i])
        with self._lock:
            if number not in self._open:
                self._open[number] = os.open(self.file(number), os.O_RDONLY | os.O_CLOEXEC)
            return self._open[number]

    def check(self, remedy: str) -> None:
        """Raise if a large file is missing or its size is not the one in the index. None is read.

        Args:
            remedy: what to do about it, as the end of a sentence.

        Raises:
            DataError: the message names the file.
        """
        for number, size in enumerate(self.index.extra["shard_sizes"].tolist()):
            path = self.file(number)
            try:
                found = os.stat(path).st_size
            except OSError as error:
                raise DataError(f"the shard {path} cannot be read ({error.strerror}): {remedy}") from error
            if found < size:
                raise DataError(f"the shard {path} is cut short, {found} of {size} bytes: {remedy}")
            if found > size:
                raise DataError(f"the shard {path} differs from the index, {found} bytes instead of {size}: {remedy}")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_open", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()  # the process that unpickles it opens the files itself

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # when Python ends, ``os`` may be gone already
        for descriptor in vars(self).get("_open", {}).values():
            close(descriptor)
