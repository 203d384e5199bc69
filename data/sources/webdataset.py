"""WebDataset: tar files whose members ``KEY.jpg``, ``KEY.cls`` and so on are one sample, read where they lie.

This is the form of ``timm/imagenet-1k-wds`` on Hugging Face. The first start reads the headers of all tar files and
images and writes an index, in which images are sorted by class (numbers by their value) and key. So their order does
not depend on how they are spread over the tar files.
"""

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from data.config import DataConfig
from data.errors import DataError
from data.index import ImageIndex, Pieces, Strings, cached_index
from data.index.building import THREADS, progress
from data.index.headers import Header, read_header_at
from data.index.image_index import pack_texts, texts_of
from data.index.rows import Rows, joined_index, reordered, sorted_order
from data.index.tars import members
from data.sources.byte_ranges import ByteRangeSource, refuse_strange_ranges, shard_columns
from data.sources.file_sets import complete_set, file_set
from data.sources.source import Advice

LONGEST_LABEL = 100  # bytes
# A class number that was written with a fraction, such as 2.0. Sorted as a name, it would come after 10.0.
FRACTION = re.compile(r"\d+\.\d*(e[+-]?\d+)?")
CLASS_NAME = re.compile(r"\w[\w ,.()'-]*")

Sample = dict[str, tuple[int, int]]  # offset and length of each member, by extension


class WebDatasetSource(ByteRangeSource):
    """The images in a split's tar files."""

    form = "WebDataset tar files"
    advice: ClassVar[Advice] = Advice(
        at_start="repair it where the tar files are made",
        in_run="copy the tar file again",
        changed="run touch on the tar file, so that it is indexed again",
    )

    @classmethod
    def fits(cls, cfg: DataConfig, split: str) -> bool:
        """See :class:`data.sources.Source`; a split fits if :func:`data.sources.file_sets.file_set` finds tar files."""
        return cfg.root is not None and file_set(Path(cfg.root), split, ".tar") is not None

    @classmethod
    def open(cls, cfg: DataConfig, split: str, build: bool = True) -> "WebDatasetSource | None":
        """See :class:`data.sources.Source`."""
        tars = complete_set(Path(str(cfg.root)), split, ".tar")
        wanted = Extensions(tuple(cfg.image_ext.lower().split(",")), cfg.label_ext.lower())

        def is_current(index: ImageIndex) -> bool:
            refuse_strange_ranges(index)
            states = list(texts_of(index.extra, "tars"))
            return states == _states(tars, wanted) and len(states) == len(index.extra["shard_sizes"])

        index = cached_index(cfg, split, is_current, partial(_scanned, tars, wanted), build)
        return None if index is None else cls(tars[0].parent, index)

    @property
    def layout(self) -> str:
        """See :class:`data.sources.Source`."""
        return f"{len(self.index.extra['shard_sizes'])} WebDataset tar files"

    def file(self, number: int) -> Path:
        """See :class:`data.sources.byte_ranges.ByteRangeSource`."""
        return self.place / texts_of(self.index.extra, "tars")[number].split("|")[0]


@dataclass(frozen=True)
class Extensions:
    """The extensions by which the image and the label of a sample are known.

    Attributes:
        images: extensions of images; the first one that a sample has is its image.
        label: extension of the label, a text file with the name or the number of the class.
    """

    images: tuple[str, ...]
    label: str


def _states(tars: list[Path], wanted: Extensions) -> list[str]:
    """A text for each tar file that changes when it, or what is wanted of it, changes; it begins with the name.

    Raises:
        DataError: if a file cannot be read, such as a broken link.
    """
    try:
        stats = [(tar.name, os.stat(tar)) for tar in tars]
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}): get it again") from error
    which = f"{','.join(wanted.images)}|{wanted.label}"
    return [f"{name}|{stat.st_size}|{stat.st_mtime_ns}|{which}" for name, stat in stats]


def _scanned(tars: list[Path], wanted: Extensions, pieces: Pieces) -> ImageIndex:
    """Read the headers of all tar files and images.

    Raises:
        DataError: if a tar file is damaged, or two samples have one key.
    """
    states = _states(tars, wanted)  # first: a file that changes meanwhile must make the index outdated
    with ThreadPoolExecutor(THREADS) as pool, progress(tars[0].parent, unit=" tars", total=len(tars)) as bar:

        def read(tar: Path, state: str) -> Rows:
            rows = pieces.rows((state,), partial(_rows, tar, wanted))
            bar.update()
            return rows

        rows = list(pool.map(read, tars, states))
    classes = sorted({name for part in rows for name in part.classes}, key=_by_number)
    index = joined_index(rows, classes)
    numbers = np.repeat(np.arange(len(tars), dtype=np.int32), [len(part) for part in rows])
    offsets = np.concatenate([part.offsets for part in rows])
    order = sorted_order(index)
    _refuse_copies(tars, index.paths, numbers, order)
    sizes = np.array([int(state.split("|")[1]) for state in states], dtype=np.int64)
    extra = shard_columns(sizes, numbers[order], offsets[order]) | pack_texts(tars=states)
    return replace(reordered(index, order), extra=extra)


def _by_number(name: str) -> tuple[bool, int, str]:
    """Sorts class numbers by value, so that 2 comes before 10, and names after them."""
    return (False, int(name), "") if name.isdecimal() else (True, 0, name)


def _refuse_copies(tars: list[Path], paths: Strings, numbers: NDArray[np.int32], order: NDArray[np.int64]) -> None:
    decoded = list(paths)
    for i, j in pairwise(order.tolist()):
        if decoded[i] == decoded[j]:
            a, b = (tars[int(numbers[row])].name for row in (i, j))
            raise DataError(f"two samples of {tars[0].parent} are named {decoded[i]}, in {a} and {b}: remove one copy")


def _rows(tar: Path, wanted: Extensions) -> Rows:
    """The images in a tar file; ``bad`` names the samples without a readable image or without a label.

    Raises:
        DataError: if it is damaged, has a sample twice, or no sample has a label.
    """
    where = f"{tar.parent.name}/{tar.name}"
    samples = _samples(tar)
    if samples and not any(wanted.label in sample for sample in samples.values()):
        raise DataError(_without_labels(tar, samples, wanted))
    paths, class_of, headers, bad, classes = [], [], [], [], []
    with open(tar, "rb") as file:
        for key, sample in samples.items():
            extension = next((name for name in wanted.images if name in sample), None)
            name = _label(file.fileno(), sample, wanted.label)
            if extension is None:
                options = ", ".join(f".{name}" for name in wanted.images)
                bad.append(f"{where}: {key} has no image ({options}; data.image_ext may name others)")
            elif name is None:
                bad.append(
                    f"{where}: {key} has no label that can be read (.{wanted.label}: a number or a name as text)"
                )
            else:
                offset, length = sample[extension]
                header = read_header_at(file.fileno(), offset, length)
                classes.append(name)
                if isinstance(header, Header):
                    paths.append(f"{key if key.startswith(f'{name}/') else f'{name}/{key}'}.{extension}")
                    class_of.append(name)
                    headers.append(header)
                else:
                    bad.append(f"{where}: {key}.{extension} {header}")
    return Rows.of(paths, class_of, headers, bad, classes)


def _without_labels(tar: Path, samples: dict[str, Sample], wanted: Extensions) -> str:
    """What to do with a tar file none of whose samples has a label."""
    extensions = {extension.rpartition(".")[2] for sample in samples.values() for extension in sample}
    if extensions <= set(wanted.images) and all("/" in key for key in samples):
        return (
            f"{tar} holds folders of images and no labels (KEY.{wanted.label}): unpack it, because class folders "
            "are read from folders, zip files and our shards, but not from other tar files"
        )
    return f"{tar} holds no KEY.{wanted.label}: set data.label_ext to the extension of its labels"


def _samples(tar: Path) -> dict[str, Sample]:
    """The samples in a tar file by key. A key ends at the first dot of a member's last part, as in WebDataset."""
    samples: dict[str, Sample] = {}
    for key, extension, offset, length in _keyed(tar):
        sample = samples.setdefault(key, {})
        if extension in sample:
            raise DataError(f"{tar} holds {key}.{extension} twice: write it again, each sample with a key of its own")
        sample[extension] = (offset, length)
    return samples


def _keyed(tar: Path) -> Iterator[tuple[str, str, int, int]]:
    for info in members(tar):
        path = PurePosixPath(info.name)
        stem, dot, extension = path.name.partition(".")
        if stem and dot:
            yield str(path.with_name(stem)), extension.lower(), info.offset_data, info.size


def _label(file: int, sample: Sample, extension: str) -> str | None:
    """The class of a sample: a number without leading zeros, or a name; ``None`` if it has none."""
    offset, length = sample.get(extension, (0, 0))
    try:
        return class_name(os.pread(file, min(length, LONGEST_LABEL + 1), offset).decode("utf-8", "replace"))
    except OSError:
        return None


def class_name(text: str) -> str | None:
    """The class that a label names: a number without leading zeros, or a name; ``None`` if it cannot be one."""
    text = text.strip()
    if text.isdecimal():
        return str(int(text))
    is_name = CLASS_NAME.fullmatch(text) and not FRACTION.fullmatch(text)
    return text if len(text.encode()) <= LONGEST_LABEL and is_name else None
