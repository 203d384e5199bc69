"""The finished pieces of an index that is being built. A start that was interrupted goes on with them."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np

from data.errors import DataError
from data.index.arrays import UNREADABLE, ArrayFile, write_arrays
from data.index.image_index import VERSION
from data.index.rows import Rows

LEAST = 256  # images of a piece that is kept: fewer are read again in a moment


class Pieces:
    """A folder with a file for each piece.

    Args:
        folder: it is made when the first piece is written.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def rows(self, description: Iterable[str], read: Callable[[], Rows]) -> Rows:
        """The rows of a piece: from its file, or read now.

        A piece with bad images is not kept, because somebody may repair them before the next start.

        Args:
            description: texts that change when the piece changes, such as its name, its size and its time.
            read: reads the piece.

        Raises:
            DataError: if the file cannot be written.
        """
        digest = hashlib.sha256(f"{VERSION}".encode())
        for text in description:
            digest.update(b"\0" + os.fsencode(text))
        path = self.folder / f"{digest.hexdigest()[:24]}.npz"
        with suppress(*UNREADABLE):
            # Copies, because every mapped file is an open one, and there may be thousands of pieces.
            return Rows.of_arrays({name: np.array(array) for name, array in ArrayFile(path).arrays.items()})
        rows = read()
        if len(rows) >= LEAST and not rows.bad:
            try:
                write_arrays(path, rows.arrays())
            except FileNotFoundError:
                pass  # another node has finished the same index, and removed the folder
            except OSError as error:
                raise unwritable_index(path, error) from error
        return rows

    def remove(self) -> None:
        """Remove the folder, when the whole index is written."""
        shutil.rmtree(self.folder, ignore_errors=True)


def unwritable_index(path: Path, error: OSError) -> DataError:
    """The error for an index, or a piece of one, that cannot be written."""
    return DataError(
        f"cannot write the index {path} ({error.strerror}): set data.index_dir to a folder with write permission"
    )
