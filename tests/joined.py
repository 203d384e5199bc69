"""A source only for tests, and the smallest example of a source."""

import json
import os
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np

from data import DataConfig
from data.index import ImageIndex, Listed, Pieces, cached_index, scanned
from data.index.headers import read_header
from data.sources import Advice, EncodedSource


class JoinedSource(EncodedSource):
    """A source only for tests: ``data.root`` is a file that holds the images of all splits one after the other.

    Its first line is JSON that says where each image is: ``{split: {class/file: [begin, length]}}``.
    """

    advice = Advice(at_start="repair it at once", in_run="bring the file back", changed="touch the file")

    def __init__(self, file: Path, split: str, index: ImageIndex):
        self.file, self.place, self.index = file, file / split, index

    @classmethod
    def fits(cls, cfg: DataConfig, split: str) -> bool:
        return cfg.root is not None and cfg.root.endswith(".joined")

    @classmethod
    def open(cls, cfg: DataConfig, split: str, build: bool = True) -> "JoinedSource | None":
        file = Path(str(cfg.root))

        def is_current(index: ImageIndex) -> bool:
            return index.extra["changed"].item() == os.stat(file).st_mtime_ns

        index = cached_index(cfg, split, is_current, partial(cls.scan, file, split), build)
        return None if index is None else cls(file, split, index)

    @staticmethod
    def scan(file: Path, split: str, pieces: Pieces) -> ImageIndex:
        """The index, with the start of each image and the modification time of the file."""
        changed = os.stat(file).st_mtime_ns  # before reading: a change in between makes the index outdated
        first, content = file.read_bytes().split(b"\n", 1)
        places = json.loads(first)[split]
        classes = sorted({path.split("/")[0] for path in places})
        listed = (Listed(n, sorted(path for path in places if path.startswith(f"{n}/")), str(changed)) for n in classes)

        def stretch(path: str) -> BytesIO:
            begin, length = places[path]
            return BytesIO(content[begin : begin + length])

        index = scanned(file / split, listed, lambda path: read_header(stretch(path)), pieces)
        begins = np.array([places[path][0] + len(first) + 1 for path in index.paths])
        return replace(index, extra={"begins": begins, "changed": np.array(changed)})

    @property
    def layout(self) -> str:
        return "one file"

    def content(self, i: int) -> bytes:
        with open(self.file, "rb") as file:
            file.seek(int(self.index.extra["begins"][i]))
            return file.read(int(self.index.lengths[i]))


def join(root: Path, to: Path) -> Path:
    """Write an image folder as a file for :class:`JoinedSource`."""
    places: dict[str, dict[str, tuple[int, int]]] = {"train": {}, "val": {}}
    content = b""
    for path in sorted(path for path in root.rglob("*.*") if path.is_file() and not path.name.startswith(".")):
        split, *rest = path.relative_to(root).parts
        places[split]["/".join(rest)] = (len(content), path.stat().st_size)
        content += path.read_bytes()
    to.write_bytes(json.dumps(places).encode() + b"\n" + content)
    return to
