"""Writes small image folders as the archives that other projects use."""

import io
import tarfile
import zipfile
from pathlib import Path

import webdataset
from PIL import Image

SPLITS = ("train", "val")
Sample = dict[str, bytes | str]  # the members of a WebDataset sample, by extension


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


def tiny_image(width: int = 8, height: int = 6, kind: str = "JPEG") -> bytes:
    """The file of a small image."""
    content = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 60)).save(content, kind)
    return content.getvalue()


def write_tar(tar: Path, **samples: Sample) -> Path:
    """A tar file with the members of each sample, in their order."""
    tar.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(tar, "w") as file:
        for key, members in samples.items():
            for extension, content in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                encoded = content.encode() if isinstance(content, str) else content
                info.size = len(encoded)
                file.addfile(info, io.BytesIO(encoded))
    return tar


def sample(label: int | str, width: int = 8) -> Sample:
    """A sample as in timm's sets: an image, its label, and a file that is not read."""
    return {"jpg": tiny_image(width), "cls": str(label), "json": "{}"}
