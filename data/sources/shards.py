"""Images in shards: large tar files with an index that says where each image begins.

Reading needs no tar library: an image is a byte range. Any image of any shard can be read at any time, so images come
in the same order as from a folder. ``scripts/prepare_imagenet.py`` writes the shards and their index.
"""

import os
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.config import DataConfig
from data.errors import DataError
from data.index import ImageIndex
from data.index.arrays import UNREADABLE, ArrayFile
from data.index.image_index import is_of_this_version, mapped_index
from data.sources.source import Advice, EncodedSource

PATTERN = "shard-*.tar"
PACKED_INDEX = "index.npz"
MOST_SHARDS = 512  # a process may have all of them open
PREPARE = "python scripts/prepare_imagenet.py"
REMEDY = "copy it again, or remove it and repeat the command of scripts/prepare_imagenet.py that wrote it"


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:05}.tar"


def shard_columns(
    sizes: NDArray[np.int64], numbers: NDArray[np.int32], offsets: NDArray[np.int64]
) -> dict[str, NDArray]:
    """The columns that the index of shards has in addition to those of every index.

    Args:
        sizes: bytes of each shard.
        numbers: number of the shard that holds each image.
        offsets: where each image begins in its shard, in bytes.
    """
    return {"shard_sizes": sizes, "shard_numbers": numbers, "shard_offsets": offsets}


class ShardSource(EncodedSource):
    """The images in a split's shards.

    Args:
        folder: where the shards are.
        index: the index of their images, with the columns of :func:`shard_columns`.
    """

    advice = Advice(
        at_start="repair it in the source and pack the images again",
        in_run="repair it in the source and pack the images again",
        changed="pack the images again",
    )

    def __init__(self, folder: Path, index: ImageIndex):
        self.place = Path(os.path.abspath(folder))
        self.index = index
        self._start()

    def _start(self) -> None:
        self._open: dict[int, int] = {}
        self._lock = Lock()

    @classmethod
    def fits(cls, cfg: DataConfig, split: str) -> bool:
        """See :class:`data.sources.Source`; a split fits if its folder holds shards or their index."""
        if cfg.root is None:
            return False
        folder = Path(cfg.root) / split
        return (folder / PACKED_INDEX).is_file() or next(folder.glob(PATTERN), None) is not None

    @classmethod
    def open(cls, cfg: DataConfig, split: str, build: bool = True) -> "ShardSource":
        """See :class:`data.sources.Source`."""
        folder = Path(str(cfg.root)) / split
        source = cls(folder, _index_of(folder))
        source.check()
        return source

    @property
    def layout(self) -> str:
        """See :class:`data.sources.Source`."""
        return f"{len(self.index.extra['shard_sizes'])} shards"

    def name(self, i: int) -> str:
        """See :class:`data.sources.Source`."""
        return f"{self.shard(i)}: {self.index.paths[i]}"

    def shard(self, i: int) -> Path:
        """The shard that holds image ``i``."""
        return self.place / shard_name(int(self.index.extra["shard_numbers"][i]))

    def stretch(self, i: int) -> tuple[int, int]:
        """Where image ``i`` begins in its shard, and its length, in bytes."""
        assert self.index.lengths is not None
        return int(self.index.extra["shard_offsets"][i]), int(self.index.lengths[i])

    def content(self, i: int) -> bytes:
        """See :class:`data.sources.EncodedSource`."""
        offset, length = self.stretch(i)
        found = os.pread(self._descriptor(i), length, offset)
        if len(found) < length:
            raise OSError("the shard has been cut short")
        return found

    def _descriptor(self, i: int) -> int:
        number = int(self.index.extra["shard_numbers"][i])
        with self._lock:
            if number not in self._open:
                self._open[number] = os.open(self.shard(i), os.O_RDONLY | os.O_CLOEXEC)
            return self._open[number]

    def check(self) -> None:
        """Raise if a shard is missing or its size is not the one in the index. No shard is read."""
        for number, size in enumerate(self.index.extra["shard_sizes"].tolist()):
            path = self.place / shard_name(number)
            try:
                found = os.stat(path).st_size
            except OSError as error:
                raise DataError(f"the shard {path} cannot be read ({error.strerror}): {REMEDY}") from error
            if found < size:
                raise DataError(f"the shard {path} is cut short, {found} of {size} bytes: {REMEDY}")
            if found > size:
                raise DataError(f"the shard {path} differs from the index, {found} bytes instead of {size}: {REMEDY}")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_open", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()  # the process that unpickles it opens the shards itself

    def __del__(self) -> None:
        for descriptor in vars(self).get("_open", {}).values():
            os.close(descriptor)


def _index_of(folder: Path) -> ImageIndex:
    """The index of a split's shards.

    Raises:
        DataError: if it is missing, damaged, of another version, or not of shards.
    """
    path = folder / PACKED_INDEX
    again = f"delete it and write it again with {PREPARE} --folder {folder.parent} --splits {folder.name} --layout keep"
    try:
        file = ArrayFile(path)
        if not is_of_this_version(file):
            raise DataError(f"the index {path} was written by another version of this project: {again}")
        index = mapped_index(file)
    except FileNotFoundError as error:
        raise DataError(
            f"{folder} holds shards but no {PACKED_INDEX}: repeat the {PREPARE} command that wrote them, "
            "which continues where it stopped"
        ) from error
    except DataError:
        raise
    except UNREADABLE as error:
        raise DataError(f"the index {path} is damaged ({error}): {again}") from error
    if index.lengths is None or not {"shard_sizes", "shard_numbers", "shard_offsets"} <= index.extra.keys():
        raise DataError(f"{path} is not an index of shards: {again}")
    return index
