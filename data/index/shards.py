"""Images in shards: large tar files of which the index knows where each image begins.

Reading needs no tar library: an image is a stretch of bytes. Any image of any shard can be read at any time, so the
order of images is the same as from a folder.
"""

import os
import resource
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import DataError

PATTERN = "shard-*.tar"
MOST_SHARDS = 512  # a process keeps each of them open


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:05}.tar"


class Shards:
    """Where the images of a split lie in its shards.

    Args:
        folder: where the shards are.
        sizes: bytes of each shard, int64.
        numbers: shard of each image, int32.
        offsets: where in its shard each image begins, int64.
        lengths: bytes of each image, int64.
    """

    def __init__(
        self,
        folder: Path,
        sizes: NDArray[np.int64],
        numbers: NDArray[np.int32],
        offsets: NDArray[np.int64],
        lengths: NDArray[np.int64],
    ):
        self.folder = Path(os.path.abspath(folder))
        self.sizes = sizes
        self.numbers = numbers
        self.offsets = offsets
        self.lengths = lengths
        self._start()

    def _start(self) -> None:
        _allow_many_files()
        self._open: dict[int, int] = {}
        self._lock = Lock()

    def path_of(self, i: int) -> Path:
        """The shard that holds image ``i``."""
        return self.folder / shard_name(int(self.numbers[i]))

    def read(self, i: int) -> bytes:
        """The file of image ``i``, undecoded; threads may read at the same time.

        Raises:
            OSError: if it cannot be read.
        """
        length, offset = int(self.lengths[i]), int(self.offsets[i])
        content = os.pread(self._descriptor(int(self.numbers[i])), length, offset)
        if len(content) < length:
            raise OSError("the shard has been cut short")
        return content

    def _descriptor(self, number: int) -> int:
        with self._lock:
            if number not in self._open:
                self._open[number] = os.open(self.folder / shard_name(number), os.O_RDONLY | os.O_CLOEXEC)
            return self._open[number]

    def check(self) -> None:
        """Raise where a shard is missing or has another size than when it was indexed: a look at each, no reading."""
        for number, size in enumerate(self.sizes.tolist()):
            path = self.folder / shard_name(number)
            try:
                found = os.stat(path).st_size
            except OSError as error:
                raise DataError(f"the shard {path} cannot be read ({error.strerror}): {REMEDY}") from error
            if found < size:
                raise DataError(f"the shard {path} is cut short, {found} of {size} bytes: {REMEDY}")
            if found > size:
                raise DataError(f"the shard {path} is not the one indexed, {found} bytes instead of {size}: {REMEDY}")

    def arrays(self) -> dict[str, NDArray]:
        """What an index file holds of it."""
        return {
            "shard_sizes": self.sizes,
            "shard_numbers": self.numbers,
            "shard_offsets": self.offsets,
            "shard_lengths": self.lengths,
        }

    @classmethod
    def mapped(cls, arrays: Mapping[str, NDArray], folder: Path) -> "Shards":
        """From an index file's arrays."""
        return cls(folder, *(arrays[f"shard_{name}"] for name in ("sizes", "numbers", "offsets", "lengths")))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_open", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()  # another process opens the shards itself

    def __del__(self) -> None:
        for descriptor in vars(self).get("_open", {}).values():
            os.close(descriptor)


def _allow_many_files() -> None:
    """A process may usually open 1024 files, and more only once it says so: several splits may have many shards."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


REMEDY = "copy it again, or remove it and repeat the command of scripts/prepare_imagenet.py that wrote it"
