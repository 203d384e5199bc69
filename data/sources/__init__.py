"""Sources: where the images of a split are, and how each is read.

To add one, write its class in a new file here, in most cases an :class:`EncodedSource`, and add it to ``SOURCES``.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from data.concurrency.processes import allow_many_files
from data.config import DataConfig
from data.errors import DataError
from data.sources.folder import FolderSource
from data.sources.root import is_unpacked, with_root
from data.sources.shards import ShardSource
from data.sources.source import Advice, EncodedSource, Source
from data.sources.synthetic import SyntheticSource
from data.sources.walking import unreadable_folder
from data.sources.webdataset import WebDatasetSource
from data.sources.zip_file import ZipSource

__all__ = ["SOURCES", "Advice", "EncodedSource", "Source", "accepted", "open_source", "source_kind"]

log = logging.getLogger(__name__)

# At most one of those with files may fit a split.
SOURCES: tuple[type[Source], ...] = (
    SyntheticSource,
    ShardSource,
    WebDatasetSource,
    ZipSource,
    FolderSource,  # where none fits, it says what is missing
)


def source_kind(cfg: DataConfig, split: str) -> type[Source]:
    """The kind of source that opens a split; nothing is unpacked, indexed or opened.

    Raises:
        DataError: if several kinds fit, or the permission to read a folder is missing.
    """
    cfg = with_root(cfg)
    with _permission_errors_explained():
        kinds = [kind for kind in SOURCES if kind.fits(cfg, split)]
    if not kinds:
        return FolderSource
    if len(kinds) > 1 and kinds[0].backend is None:  # a kind that makes its images looks at no files
        forms = f"{kinds[0].form} and {kinds[1].form}"
        raise DataError(f"{cfg.root} holds the {split} images in two forms, {forms}: keep one of them there")
    return kinds[0]


def open_source(cfg: DataConfig, split: str, build: bool = True, says: bool = True) -> Source | None:
    """Open a split. Its archive is unpacked and its index is built if that is not done yet.

    Args:
        cfg: the data set.
        split: name of the split, such as ``cfg.train_split``.
        build: whether to unpack and index if needed; if not, ``None`` is returned in that case.
        says: whether the log says how many files are left out.

    Raises:
        DataError: if there is no such split, a class has no images, a file is no image, or an archive, a shard or the
            index of shards is damaged.
    """
    if not build and not is_unpacked(cfg):
        return None
    allow_many_files()
    cfg = with_root(cfg, unpack=True)
    with _permission_errors_explained():
        kind = source_kind(cfg, split)
        if kind is FolderSource:
            _refuse_half_a_set(cfg, split)
        source = kind.open(cfg, split, build)
    return accepted(source, cfg, says) if isinstance(source, EncodedSource) else source


def accepted(source: EncodedSource, cfg: DataConfig, says: bool = True) -> EncodedSource:
    """The source itself; the log says how many files are left out, unless ``says`` is false.

    Raises:
        DataError: if it has bad images and ``data.on_bad_image`` is ``error``, if there are no classes, or if a class
            has no images.
    """
    index, bad = source.index, source.index.bad
    if bad and cfg.on_bad_image == "error":
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        skip = "leave such files out with data.on_bad_image=skip"
        raise DataError(f"{bad[0]}{more}: {source.advice.at_start}, or {skip}")
    if not index.classes:
        raise DataError(f"{source.place} has no classes: it must hold <class>/<image>")
    counts = np.bincount(index.targets, minlength=len(index.classes))
    if not counts.all():
        empty = source.place / index.classes[int(counts.argmin())]
        raise DataError(f"class {empty} holds no images: add images to it or delete it")
    if bad and says:
        log.warning("left out %d files that are not images; the first: %s", len(bad), bad[0])
    return source


def _refuse_half_a_set(cfg: DataConfig, split: str) -> None:
    """Raise if there is no folder of this split, while the other split is there in another form."""
    if cfg.root is None or (Path(cfg.root) / split).is_dir():
        return
    for other in {cfg.train_split, cfg.split} - {split}:
        for kind in SOURCES:
            if kind is not FolderSource and kind.fits(cfg, other):
                raise DataError(
                    f"{cfg.root} holds the {other} images in {kind.form}, but no {split} images: add them in this form"
                )


@contextmanager
def _permission_errors_explained() -> Iterator[None]:
    """Turn a missing permission, met by any source, into an error for the user."""
    try:
        yield
    except PermissionError as error:
        raise unreadable_folder(error) from error
