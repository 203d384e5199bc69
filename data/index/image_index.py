"""The index of a split's images: path, class, height and width of each, in columns.

Paths are held in one array of bytes, so 1.28 million of them cost no Python objects. An index that lies in a file is
mapped, not read. How the images themselves are read is the affair of a source (:mod:`data.sources`).
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import DataError
from data.index.arrays import ArrayFile, Identity

VERSION = 2
TEXTS = ("paths", "classes", "bad")
COLUMNS = {"version", "cmyk", "targets", "heights", "widths", "lengths", *TEXTS, *(f"{name}_ends" for name in TEXTS)}


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
        classes: names of the classes, sorted.
        paths: of each image, ``<class>/<file>``, whatever holds it.
        targets: row in ``classes`` of each image.
        heights: in pixels as stored (an EXIF rotation is not applied).
        widths: likewise.
        cmyk: rows of the images whose colours are CMYK.
        bad: files left out, each as ``path: reason``.
        lengths: bytes of each file; ``None`` where there are no files, and in a folder's index of earlier days.
        extra: arrays by name that only the source of the images reads, such as where each image begins; none has the
            name of a column.
        file: the file that is mapped here, if one is.
    """

    classes: list[str]
    paths: Strings
    targets: NDArray[np.int32]
    heights: NDArray[np.int32]
    widths: NDArray[np.int32]
    cmyk: frozenset[int] = frozenset()
    bad: list[str] = field(default_factory=list)
    lengths: NDArray[np.int64] | None = None
    extra: Mapping[str, NDArray] = field(default_factory=dict)
    file: ArrayFile | None = field(init=False, default=None, compare=False)  # not that of a changed copy

    def __len__(self) -> int:
        return len(self.targets)

    def fingerprint(self) -> str:
        """Digests of which images there are; the same wherever and however they lie.

        They stand for the names and classes, for heights and widths, and for the bytes of the files where these are
        known, with hyphens between. No image is read: pixels changed in files of the same size are not noticed.
        """
        lengths = self.lengths
        names = (np.frombuffer(b"\0".join(map(os.fsencode, self.classes)), np.uint8), self.paths.blob, self.paths.ends)
        parts = [(*names, self.targets), (self.heights, self.widths), *([(lengths,)] if lengths is not None else [])]
        return "-".join(_digest(part) for part in parts)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process maps the file too, as long as it is the one that is mapped here."""
        if self.file is not None and self.file.is_current():
            return _map_again, (self.file.path, self.file.identity)
        columns = (self.paths, self.targets, self.heights, self.widths)
        return ImageIndex, (self.classes, *columns, self.cmyk, self.bad, self.lengths, dict(self.extra))

    def arrays(self) -> dict[str, NDArray]:
        """What :func:`data.index.arrays.write_arrays` writes of it."""
        assert not (taken := self.extra.keys() & COLUMNS), f"a source keeps {taken}, which are columns of every index"
        columns: dict[str, NDArray] = {"targets": self.targets, "heights": self.heights, "widths": self.widths}
        small = {"version": np.array(VERSION), "cmyk": np.array(sorted(self.cmyk), dtype=np.int64)}
        if self.lengths is not None:
            columns["lengths"] = self.lengths
        texts = pack_texts(paths=self.paths, classes=self.classes, bad=self.bad)
        return small | columns | texts | dict(self.extra)


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


def texts_of(arrays: Mapping[str, NDArray], name: str) -> Strings:
    """A list of strings among arrays by name."""
    return Strings(arrays[name], arrays[f"{name}_ends"])


def is_of_this_version(file: ArrayFile) -> bool:
    """Whether a file of arrays is an index as this version of the project writes it."""
    return int(file.arrays["version"]) == VERSION


def mapped_index(file: ArrayFile) -> ImageIndex:
    """The index in a file of arrays."""
    arrays = file.arrays
    index = ImageIndex(
        classes=list(texts_of(arrays, "classes")),
        paths=texts_of(arrays, "paths"),
        targets=arrays["targets"],
        heights=arrays["heights"],
        widths=arrays["widths"],
        cmyk=frozenset(arrays["cmyk"].tolist()),
        bad=list(texts_of(arrays, "bad")),
        lengths=arrays.get("lengths", arrays.get("shard_lengths")),  # the latter in shards of earlier days
        extra={name: array for name, array in arrays.items() if name not in COLUMNS},
    )
    object.__setattr__(index, "file", file)
    return index


def _map_again(path: Path, identity: Identity) -> ImageIndex:
    file = ArrayFile(path, verify=False)
    if file.identity != identity:
        raise DataError(f"the index {path} was replaced while processes were starting: run the same command again")
    return mapped_index(file)
