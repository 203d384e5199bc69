"""Opens splits of image folders and packed sets in the same way as the options do."""

from pathlib import Path

from data.config import DataConfig
from data.sources import EncodedSource, Source, open_source


def open_at(root: Path, split: str = "train", build: bool = True, **options) -> Source | None:
    """The source that ``data.root=root`` opens; ``options`` are other options of ``data.*``."""
    return open_source(DataConfig(name="folder", root=str(root), **options), split, build)


def source_of(root: Path, split: str = "train", **options) -> EncodedSource:
    """The same for a split that is known to be a source of files."""
    source = open_at(root, split, **options)
    assert isinstance(source, EncodedSource)
    return source
