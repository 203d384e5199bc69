"""Writes small image folders as the archives that other projects use."""

import zipfile
from pathlib import Path

import webdataset

SPLITS = ("train", "val")


def images_in(folder: Path) -> list[Path]:
    """The images of a split, sorted by class and path."""
    return sorted(path for path in folder.rglob("*.*") if path.is_file() and not path.name.startswith("."))


def write_tars(images: Path, to: Path, pattern: str = "{split}/{split}-%04d.tar", each: int = 5) -> Path:
    """WebDataset tar files of ``each`` samples, written by that package; labels are the names of the class folders."""
    for split in SPLITS:
        target = to / pattern.format(split=split)
        target.parent.mkdir(parents=True, exist_ok=True)
        with webdataset.ShardWriter(str(target), maxcount=each, verbose=0) as writer:
            for path in images_in(images / split):
                key = path.relative_to(images / split).with_suffix("")
                writer.write({"__key__": str(key), path.suffix[1:]: path.read_bytes(), "cls": key.parts[0]})
    return to


def write_zips(images: Path, to: Path, method: int = zipfile.ZIP_STORED, prefix: str = "") -> Path:
    """A zip file for each split, with class folders below ``prefix``."""
    to.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        with zipfile.ZipFile(to / f"{split}.zip", "w", method) as archive:
            for path in images_in(images / split):
                archive.write(path, prefix + str(path.relative_to(images / split)))
    return to
