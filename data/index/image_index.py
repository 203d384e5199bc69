"""The index of a split's images: path, class, height and width of each, in columns.

Paths are stored in one array of bytes, so 1.28 million paths need no Python objects. An index in a file is mapped into
memory, not read. The images themselves are read by a source (:mod:`data.sources`).
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

VERSION = 3
TEXTS = ("paths", "classes", "bad")
ENDS = {f"{name}_ends" for name in TEXTS}
COLUMNS = {"version", "odd_colours", "targets", "heights", "widths", "lengths", *TEXTS, *ENDS}
PARTS, SHORT = 64, 4  # digests of file sizes in a fingerprint, and the digits of each
MOST_REPAIRED = 1 / 8  # share of the parts in which files may have other sizes, because they were repaired


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
        """Several lists as one, in this order."""
        starts = np.cumsum([0, *(len(part.blob) for part in parts)])
        ends = [part.ends + start for part, start in zip(parts, starts, strict=False)]
        return cls(np.concatenate([part.blob for part in parts]), np.concatenate(ends))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> str:
        start = self.ends[i - 1] if i else 0
        return os.fsdecode(self.blob[start : self.ends[i]].tobytes())

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))


@dataclass(frozen=True)
class ImageIndex:
    """The images of one split, sorted by class and path.

    Attributes:
        classes: names of the classes, sorted.
        paths: path of each image, ``<class>/<file>``, also in shards.
        targets: index into ``classes`` for each image.
        heights: in pixels as stored (an EXIF rotation is not applied).
        widths: likewise.
        odd_colours: rows of the JPEGs whose colours are neither YCbCr nor grey; Pillow decodes these for every backend.
        bad: files left out, each as ``path reason``.
        lengths: bytes of each file; ``None`` if there are no files.
        extra: arrays by name that only the source of the images reads, such as where each image begins. No name may be
            that of a column.
        file: the file that is mapped, if there is one.
    """

    classes: list[str]
    paths: Strings
    targets: NDArray[np.int32]
    heights: NDArray[np.int32]
    widths: NDArray[np.int32]
    odd_colours: frozenset[int] = frozenset()
    bad: list[str] = field(default_factory=list)
    lengths: NDArray[np.int64] | None = None
    extra: Mapping[str, NDArray] = field(default_factory=dict)
    file: ArrayFile | None = field(init=False, default=None, compare=False)  # a changed copy has none

    def __len__(self) -> int:
        return len(self.targets)

    def fingerprint(self) -> str:
        """Digests of which images there are; they do not depend on where and how the images are stored.

        One digest is of the names and classes, and one of heights and widths. If file sizes are known, one is of these,
        and short ones of each of ``PARTS`` parts of them show how many have changed. Hyphens join the digests. No image
        is read: changed pixels in a file of the same size are not noticed.
        """
        lengths = self.lengths
        names = (np.frombuffer(b"\0".join(map(os.fsencode, self.classes)), np.uint8), self.paths.blob, self.paths.ends)
        digests = [_digest((*names, self.targets)), _digest((self.heights, self.widths))]
        if lengths is not None:
            parts = np.array_split(lengths, min(PARTS, max(len(lengths), 1)))
            digests += [_digest((lengths,)), "".join(_digest((part,))[:SHORT] for part in parts)]
        return "-".join(digests)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process maps the same file, if it is still the one mapped here; else the columns are copied."""
        if self.file is not None and self.file.is_current():
            return _map_again, (self.file.path, self.file.identity)
        columns = (self.paths, self.targets, self.heights, self.widths)
        return ImageIndex, (self.classes, *columns, self.odd_colours, self.bad, self.lengths, dict(self.extra))

    def arrays(self) -> dict[str, NDArray]:
        """The arrays that :func:`data.index.arrays.write_arrays` writes."""
        assert not (taken := self.extra.keys() & COLUMNS), (
            f"a source has columns named {taken}, as every index has: rename them"
        )
        columns: dict[str, NDArray] = {"targets": self.targets, "heights": self.heights, "widths": self.widths}
        small = {"version": np.array(VERSION), "odd_colours": np.array(sorted(self.odd_colours), dtype=np.int64)}
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
    """What differs between two fingerprints, or ``None``. Only digests that both fingerprints have are compared.

    A few files of other sizes count as repaired, and not as other images.
    """
    whats = ("names or classes", "heights or widths", "file sizes")
    what = next((what for what, a, b in zip(whats, old.split("-"), new.split("-"), strict=False) if a != b), None)
    return None if what == "file sizes" and are_few_changed(old, new) else what


def are_few_changed(old: str, new: str) -> bool:
    """Whether two fingerprints of the same images have some, but only few different file sizes."""
    sizes = [fingerprint.split("-")[-1] for fingerprint in (old, new) if fingerprint.count("-") == 3]
    if len(sizes) < 2 or len(sizes[0]) != len(sizes[1]):
        return False
    places = range(0, len(sizes[0]), SHORT)
    changed = sum(sizes[0][place : place + SHORT] != sizes[1][place : place + SHORT] for place in places)
    return 0 < changed <= MOST_REPAIRED * len(places)


def pack_texts(**texts: Strings | list[str]) -> dict[str, NDArray]:
    """Lists of strings as named arrays."""
    packed = {name: text if isinstance(text, Strings) else Strings.pack(text) for name, text in texts.items()}
    blobs = {name: text.blob for name, text in packed.items()}
    return blobs | {f"{name}_ends": text.ends for name, text in packed.items()}


def texts_of(arrays: Mapping[str, NDArray], name: str) -> Strings:
    """A list of strings that :func:`pack_texts` has packed.

    Raises:
        ValueError: if the arrays are no such list.
    """
    blob, ends = arrays[name], arrays[f"{name}_ends"]
    lengths = np.diff(whole_numbers(arrays, f"{name}_ends", len(ends), len(blob)), prepend=0)
    if blob.dtype != np.uint8 or blob.ndim != 1 or (lengths < 0).any() or lengths.sum() != len(blob):
        raise ValueError(f"its {name} are damaged")
    return Strings(blob, ends)


def refuse_other_places(paths: Strings) -> None:
    """Refuse paths that lead out of the folder of the images. An index that came with the images may be a trap.

    Raises:
        ValueError: if there is such a path, or one that no file can have.
    """
    content = paths.blob.tobytes()
    begins = paths.blob[np.concatenate([[0], paths.ends[:-1]])] if len(paths) else paths.blob
    # Looking at a million paths one by one would take seconds, and few sets have two points in a row.
    has_parent = b".." in content and any(".." in path.split("/") for path in paths)
    if has_parent or b"\0" in content or (begins == ord("/")).any():
        raise ValueError("it names files outside the folder")


def whole_numbers(
    arrays: Mapping[str, NDArray], name: str, shape: int | tuple[int, ...], most: float = np.inf
) -> NDArray:
    """An array of whole numbers from 0 to ``most`` that has this length or shape.

    Raises:
        ValueError: if it has other values or another shape.
    """
    column = arrays[name]
    fits = column.shape == (shape if isinstance(shape, tuple) else (shape,)) and column.dtype.kind == "i"
    if not fits or (column.size and not 0 <= column.min() <= column.max() <= most):
        raise ValueError(f"its {name} are damaged")
    return column


def is_of_this_version(file: ArrayFile) -> bool:
    """Whether a file of arrays is an index in this version's format."""
    return int(file.arrays["version"]) == VERSION


def mapped_index(file: ArrayFile) -> ImageIndex:
    """The index in a file of arrays. The columns that only its source reads are not checked.

    Raises:
        UNREADABLE: if it is damaged, or was made by another program.
    """
    arrays = file.arrays
    classes, paths = texts_of(arrays, "classes"), texts_of(arrays, "paths")
    count = len(paths)
    index = ImageIndex(
        classes=list(classes),
        paths=paths,
        targets=whole_numbers(arrays, "targets", count, len(classes) - 1),
        heights=whole_numbers(arrays, "heights", count),
        widths=whole_numbers(arrays, "widths", count),
        odd_colours=frozenset(whole_numbers(arrays, "odd_colours", len(arrays["odd_colours"]), count - 1).tolist()),
        bad=list(texts_of(arrays, "bad")),
        lengths=whole_numbers(arrays, "lengths", count) if "lengths" in arrays else None,
        extra={name: array for name, array in arrays.items() if name not in COLUMNS},
    )
    object.__setattr__(index, "file", file)
    return index


def _map_again(path: Path, identity: Identity) -> ImageIndex:
    file = ArrayFile(path, verify=False)
    if file.identity != identity:
        raise DataError(f"the index {path} was replaced while processes were starting: run the same command again")
    return mapped_index(file)
