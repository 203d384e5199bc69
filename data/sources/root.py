"""Where a data set is: the folder or file that the options name, or the folder of the archive that they name."""

import os
from dataclasses import replace
from pathlib import Path

from data.config import DataConfig
from data.storage.archive import PROJECT, folder_of, is_complete, unpacked


def with_root(cfg: DataConfig, unpack: bool = False) -> DataConfig:
    """The options with ``root`` as a full path. For an archive, it is the folder that the archive is unpacked into.

    Args:
        cfg: the options; not changed if they have neither ``root`` nor ``archive``.
        unpack: whether to unpack the archive if that is not done yet.

    Raises:
        DataError: if the archive is missing or damaged.
    """
    if cfg.root is not None:
        return replace(cfg, root=os.path.abspath(os.path.expanduser(cfg.root)))
    if cfg.archive is not None:
        root = unpacked(*_archive(cfg)) if unpack else folder_of(*_archive(cfg))
        return replace(cfg, root=str(root))
    return cfg


def is_unpacked(cfg: DataConfig) -> bool:
    """Whether :func:`with_root` has nothing to unpack."""
    return cfg.root is not None or cfg.archive is None or is_complete(folder_of(*_archive(cfg)))


def _archive(cfg: DataConfig) -> tuple[Path, str]:
    """The file of ``data.archive`` and its SHA-256 digest."""
    return PROJECT / str(cfg.archive), cfg.archive_sha256 or ""
