"""The index of a split's images: path, class, height and width of each, in arrays.

Paths are held in one array of bytes, so 1.28 million of them cost no Python objects; an index that lies in a file is
mapped, not read. Where the images themselves lie, in files of their own or in shards, is the index's affair.
"""

import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import DataError
from data.index.arrays import ArrayFile, Identity
from data.index.headers import Header
from data.index.shards import Shards

VERSION = 2
PAUSES = (0.1, 0.4, 1.5)  # seconds before a file that could not be read is tried again


@dataclass(frozen=True)
class Strings:
    """A list of strings as one array of bytes."""

    blob: NDArray[np.uint8]
    ends: NDArray[np.int64]

    @classmethod
    def pack(cls, strings: Sequence[str]) -> "Strings":
        encoded = [os.fsencode(s) for s in strings]
        ends = np.cumsum([len(s) for s in encoded], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), ends)

    @classmethod
    def join(cls, parts: Sequence["Strings"]) -> "Strings":
        """Several lists one after the other."""
        starts = np.cumsum([0, *(len(part.blob) for part in parts)])
        ends = [part.ends + start for part, start in zip(parts, starts, strict=False)]
        return cls(np.concatenate([part.blob for part in parts]), np.concatenate(ends))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> str:
        start = self.ends[i - 1] if i > 0 else 0
        return os.fsdecode(self.blob[start : self.ends[i]].tobytes())

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))


@dataclass(frozen=True)
class ImageIndex:
    """The images of one split, sorted by class and path.

    Attributes:
        root: the split's folder; paths are relative to it.
        classes: names of the class folders, sorted.
        paths: relative path of each image, in a shard too: ``<class>/<file>``.
        targets: row in ``classes`` of each image.
        heights: in pixels as stored (an EXIF rotation is not applied).
        widths: likewise.
        cmyk: rows of the images whose colours are CMYK.
        bad: files left out, each as ``path: reason``.
        shards: where the images lie in shards; ``None`` where each is a file of its own.
        lengths: bytes of each file; ``None`` for shards, which know them, and in an index of earlier days.
        file: the file that is mapped here, if one is.
    """

    root: Path
    classes: list[str]
    paths: Strings
    targets: NDArray[np.int32]
    heights: NDArray[np.int32]
    widths: NDArray[np.int32]
    cmyk: frozenset[int] = frozenset()
    bad: list[str] = field(default_factory=list)
    shards: Shards | None = None
    lengths: NDArray[np.int64] | None = None
    file: ArrayFile | None = field(init=False, default=None, compare=False)  # not that of a changed copy

    def __len__(self) -> int:
        return len(self.targets)

    def path(self, i: int) -> str:
        """Full path of image ``i`` where each is a file of its own."""
        return os.path.join(self.root, self.paths[i])

    def name(self, i: int) -> str:
        """Where image ``i`` lies, for people: its path, or its shard and its path there."""
        return self.path(i) if self.shards is None else f"{self.shards.path_of(i)}: {self.paths[i]}"

    def read(self, i: int) -> bytes:
        """The file of image ``i``, undecoded; tried a few times, for networks may fail for a moment.

        Raises:
            OSError: if it cannot be read.
        """
        for pause in PAUSES:
            try:
                return self._read(i)
            except OSError:
                time.sleep(pause)
        return self._read(i)

    def _read(self, i: int) -> bytes:
        if self.shards is not None:
            return self.shards.read(i)
        with open(self.path(i), "rb", buffering=0) as file:
            return file.readall()

    def fingerprint(self) -> str:
        """Digests of which images there are; the same wherever and however they lie.

        They stand for the names and classes, for heights and widths, and for the bytes of the files where these are
        known, with hyphens between. No image is read: pixels changed in files of the same size are not noticed.
        """
        lengths = self.lengths if self.shards is None else self.shards.lengths
        names = (np.frombuffer(b"\0".join(map(os.fsencode, self.classes)), np.uint8), self.paths.blob, self.paths.ends)
        parts = [(*names, self.targets), (self.heights, self.widths), *([(lengths,)] if lengths is not None else [])]
        return "-".join(_digest(part) for part in parts)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process maps the file too, as long as it is the one that is mapped here."""
        if self.file is not None and self.file.is_current():
            return _map_again, (self.file.path, self.file.identity, self.root)
        columns = (self.paths, self.targets, self.heights, self.widths)
        return ImageIndex, (self.root, self.classes, *columns, self.cmyk, self.bad, self.shards, self.lengths)

    def arrays(self) -> dict[str, NDArray]:
        """What :func:`data.index.arrays.write_arrays` writes of it."""
        columns: dict[str, NDArray] = {"targets": self.targets, "heights": self.heights, "widths": self.widths}
        small = {"version": np.array(VERSION), "cmyk": np.array(sorted(self.cmyk), dtype=np.int64)}
        if self.lengths is not None:
            columns["lengths"] = self.lengths
        texts = pack_texts(paths=self.paths, classes=self.classes, bad=self.bad)
        return small | columns | texts | (self.shards.arrays() if self.shards is not None else {})


def _digest(arrays: Iterable[NDArray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def differing(old: str, new: str) -> str | None:
    """In what two fingerprints differ, as far as both say it; None where they are of the same images."""
    whats = ("names or classes", "heights or widths", "sizes of their files")
    return next((what for what, a, b in zip(whats, old.split("-"), new.split("-"), strict=False) if a != b), None)


def pack_texts(**texts: Strings | list[str]) -> dict[str, NDArray]:
    """Lists of strings as arrays by name."""
    packed = {name: text if isinstance(text, Strings) else Strings.pack(text) for name, text in texts.items()}
    blobs = {name: text.blob for name, text in packed.items()}
    return blobs | {f"{name}_ends": text.ends for name, text in packed.items()}


def texts_of(file: ArrayFile, name: str) -> Strings:
    """A list of strings in a file of arrays."""
    return Strings(file.arrays[name], file.arrays[f"{name}_ends"])


def is_of_this_version(file: ArrayFile) -> bool:
    """Whether a file of arrays is an index as this version of the project writes it."""
    return int(file.arrays["version"]) == VERSION


def mapped_index(file: ArrayFile, root: Path) -> ImageIndex:
    """The index in a file of arrays, of the split in ``root``."""
    arrays = file.arrays
    index = ImageIndex(
        root=root,
        classes=list(texts_of(file, "classes")),
        paths=texts_of(file, "paths"),
        targets=arrays["targets"],
        heights=arrays["heights"],
        widths=arrays["widths"],
        cmyk=frozenset(arrays["cmyk"].tolist()),
        bad=list(texts_of(file, "bad")),
        shards=Shards.mapped(arrays, root) if "shard_sizes" in arrays else None,
        lengths=arrays.get("lengths"),
    )
    object.__setattr__(index, "file", file)
    return index


def _map_again(path: Path, identity: Identity, root: Path) -> ImageIndex:
    file = ArrayFile(path, verify=False)
    if file.identity != identity:
        raise DataError(f"the index {path} was replaced while processes were starting: run the same command again")
    return mapped_index(file, root)


@dataclass(frozen=True)
class Rows:
    """Rows of an index in the making: the images of one class or shard, and what was left out."""

    paths: Strings
    targets: NDArray[np.int32]
    sizes: NDArray[np.int32]  # (n, 2) height, width
    cmyk: NDArray[np.bool_]
    lengths: NDArray[np.int64]
    bad: list[str]

    @classmethod
    def of(cls, paths: Sequence[str], targets: Sequence[int], headers: Sequence[Header], bad: list[str]) -> "Rows":
        sizes = np.array([(header.height, header.width) for header in headers], dtype=np.int32).reshape(-1, 2)
        cmyk = np.array([header.cmyk for header in headers], dtype=bool)
        lengths = np.array([header.length for header in headers], dtype=np.int64)
        return cls(Strings.pack(paths), np.array(targets, dtype=np.int32), sizes, cmyk, lengths, bad)


def joined_index(root: Path, classes: list[str], rows: Sequence[Rows], shards: Shards | None = None) -> ImageIndex:
    """The index of all rows, which are in its order."""
    rows = rows or [Rows.of([], [], [], [])]
    sizes = np.concatenate([part.sizes for part in rows])
    return ImageIndex(
        root=root,
        classes=classes,
        paths=Strings.join([part.paths for part in rows]),
        targets=np.concatenate([part.targets for part in rows]),
        heights=np.ascontiguousarray(sizes[:, 0]),
        widths=np.ascontiguousarray(sizes[:, 1]),
        cmyk=frozenset(np.flatnonzero(np.concatenate([part.cmyk for part in rows])).tolist()),
        bad=[entry for part in rows for entry in part.bad],
        shards=shards,
        lengths=np.concatenate([part.lengths for part in rows]) if shards is None else None,
    )


def synthetic_index(count: int, classes: int, side: int) -> ImageIndex:
    """An index of ``count`` images that exist nowhere, spread evenly over the classes."""
    sizes = np.full(count, side, dtype=np.int32)
    return ImageIndex(
        root=Path("synthetic"),
        classes=[str(label) for label in range(classes)],
        paths=Strings.pack([""] * count),
        targets=(np.arange(count) % classes).astype(np.int32),
        heights=sizes,
        widths=sizes,
    )
