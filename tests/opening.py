"""Opening the splits of image folders and packed sets, as the options would."""

from pathlib import Path

from data.config import DataConfig
from data.sources import EncodedSource, Source, open_source


def open_at(root: Path, split: str = "train", build: bool = True, **options) -> Source | None:
    """What ``data.root=root`` opens; ``options`` are those of ``data.*``."""
    return open_source(DataConfig(name="folder", root=str(root), **options), split, build)


def source_of(root: Path, split: str = "train", **options) -> EncodedSource:
    """The same where there is surely a source of files."""
    source = open_at(root, split, **options)
    assert isinstance(source, EncodedSource)
    return source
