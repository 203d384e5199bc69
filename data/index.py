"""The index of an image folder: path, class, height and width of every image, written once.

Later starts stat the class folders (a file added or removed changes a folder's modification time) and read one file;
they never list the images. Paths are held in one array of bytes, so 1.28 million of them cost no Python objects.
"""

import hashlib
import logging
import os
import secrets
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from data.cache import cache_dir
from data.errors import DataError

log = logging.getLogger(__name__)

VERSION = 1
EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm"}
READABLE = ("JPEG", "PNG")  # by content, whatever the name says
FLAT = ""  # the one class of a folder without class folders
THREADS = 32  # reading headers waits for the disk, not for the processor


@dataclass(frozen=True)
class Strings:
    """A list of strings as one array of bytes."""

    blob: NDArray[np.uint8]
    ends: NDArray[np.int64]

    @classmethod
    def pack(cls, strings: list[str]) -> "Strings":
        encoded = [os.fsencode(s) for s in strings]
        ends = np.cumsum([len(s) for s in encoded], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), ends)

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
        root: the split's folder; paths are relative to it.
        classes: names of the class folders, sorted.
        paths: relative path of each image.
        targets: row in ``classes`` of each image.
        heights: in pixels as stored (an EXIF rotation is not applied).
        widths: likewise.
        bad: files left out, each as ``path: reason``.
    """

    root: Path
    classes: list[str]
    paths: Strings
    targets: NDArray[np.int32]
    heights: NDArray[np.int32]
    widths: NDArray[np.int32]
    bad: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.targets)

    def path(self, i: int) -> str:
        """Full path of image ``i``."""
        return os.path.join(self.root, self.paths[i])

    def fingerprint(self) -> str:
        """A digest of which images there are, in which classes; the same wherever the folder lies."""
        digest = hashlib.sha256(b"\0".join(os.fsencode(name) for name in self.classes))
        for array in (self.paths.blob, self.paths.ends, self.targets):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]


def load_index(
    root: Path,
    split: str,
    index_dir: str | None = None,
    on_bad_image: str = "error",
    build: bool = True,
    flat: bool = False,
) -> ImageIndex | None:
    """The index of ``root/split``, from its file if that is still true, else built anew.

    Args:
        root: folder of the data set.
        split: folder inside it that holds one folder a class.
        index_dir: where the index lies; default in ``root`` if that can be written, else in the user's cache.
        on_bad_image: ``"error"`` or ``"skip"``: what a file that is no readable image means.
        build: whether to build it where needed; otherwise ``None`` is returned then.
        flat: whether the images lie in the split's folder itself, which has no class folders.

    Raises:
        DataError: if the folder is missing or empty, a class has no images, or a file is no image.
    """
    folder = root / split
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder: data.root must hold {split}/<class>/<image>")
    cached = _file(root, split, index_dir)
    found = _read(cached, folder)
    if found is not None and found[0].bad and on_bad_image == "error":
        found = None  # a file mended in place does not change its folder's modification time
    if found is None:
        if not build:
            return None
        found = _build(folder)
        _write(cached, *found)
    index = found[0]
    if index.bad and on_bad_image == "error":
        more = f" and {len(index.bad) - 1} more" if len(index.bad) > 1 else ""
        raise DataError(f"{index.bad[0]}{more}: mend or remove it, or leave such files out with data.on_bad_image=skip")
    _refuse_empty(index, flat)
    if index.bad:
        log.warning("left out %d files that are no images, first %s", len(index.bad), index.bad[0])
    return index


def _refuse_empty(index: ImageIndex, flat: bool) -> None:
    if not index.classes or (index.classes == [FLAT] and not flat):
        raise DataError(f"{index.root} has no class folders: it must hold <class>/<image>")
    counts = np.bincount(index.targets, minlength=len(index.classes))
    if not counts.all():
        empty = index.classes[int(counts.argmin())]
        raise DataError(f"class folder {index.root / empty} holds no images: fill it or remove it")


def _file(root: Path, split: str, index_dir: str | None) -> Path:
    """Where the index of a split lies."""
    if index_dir is None and os.access(root, os.W_OK):
        return root / f".coldstart-index-{split}.npz"
    where = Path(index_dir) if index_dir is not None else cache_dir() / "index"
    place = hashlib.sha256(os.fsencode((root / split).resolve())).hexdigest()[:12]
    return where / f"{split}-{place}.npz"


# --- building -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Folders:
    """The folders an index was built from, with their modification times in nanoseconds."""

    names: list[str]
    mtimes: NDArray[np.int64]

    def unchanged(self, root: Path) -> bool:
        try:
            return all(os.stat(root / n).st_mtime_ns == t for n, t in zip(self.names, self.mtimes, strict=True))
        except OSError:
            return False


def _build(folder: Path) -> tuple[ImageIndex, Folders]:
    """List a split's folder and read every image's header."""
    log.info("indexing %s (once)", folder)
    names, mtimes = ["."], [os.stat(folder).st_mtime_ns]
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    classes = classes or [FLAT]
    files: list[tuple[str, int]] = []
    for target, name in enumerate(classes):
        for relative, mtime, images in _walk(folder, name):
            names.append(relative)
            mtimes.append(mtime)
            files += [(image, target) for image in images]
    files.sort(key=lambda item: (item[1], item[0]))
    with ThreadPoolExecutor(THREADS) as pool:
        read = pool.map(lambda item: _image_size(folder / item[0]), files)
        label = f"index {folder.name}"
        sizes = list(tqdm(read, total=len(files), desc=label, unit=" images", disable=None, leave=False))
    good = [i for i, size in enumerate(sizes) if not isinstance(size, str)]
    index = ImageIndex(
        root=folder,
        classes=classes,
        paths=Strings.pack([files[i][0] for i in good]),
        targets=np.array([files[i][1] for i in good], dtype=np.int32),
        heights=np.array([sizes[i][0] for i in good], dtype=np.int32),
        widths=np.array([sizes[i][1] for i in good], dtype=np.int32),
        bad=[f"{folder / files[i][0]} {size}" for i, size in enumerate(sizes) if isinstance(size, str)],
    )
    return index, Folders(names, np.array(mtimes, dtype=np.int64))


def _walk(root: Path, relative: str) -> Iterator[tuple[str, int, list[str]]]:
    """Each folder at and below ``relative``, with its modification time and the images in it.

    The time is taken before listing, so a file that arrives meanwhile makes the index stale instead of being missed.
    """
    mtime = os.stat(root / relative).st_mtime_ns
    entries = [entry for entry in os.scandir(root / relative) if not entry.name.startswith(".")]
    images = [e.name for e in entries if os.path.splitext(e.name)[1].lower() in EXTENSIONS and not e.is_dir()]
    yield relative, mtime, [os.path.join(relative, image) for image in images]
    for entry in entries:
        if entry.is_dir():
            yield from _walk(root, os.path.join(relative, entry.name))


def _image_size(path: Path) -> tuple[int, int] | str:
    """``(height, width)`` from an image's header, or what is wrong with the file."""
    try:
        with Image.open(path, formats=READABLE) as image:
            if image.mode.startswith("I"):
                return "has 16 bits a channel, which the decoders read differently"
            return image.height, image.width
    except UnidentifiedImageError:
        return "is no JPEG or PNG image"
    except Image.DecompressionBombError:
        return "has too many pixels"
    except (OSError, ValueError) as error:
        return f"cannot be read ({getattr(error, 'strerror', None) or error})"


# --- the file -------------------------------------------------------------------------------------------------------


def _write(path: Path, index: ImageIndex, folders: Folders) -> None:
    """Write an index so that a reader sees either none or all of it."""
    bad, classes, names = (Strings.pack(s) for s in (index.bad, index.classes, folders.names))
    # Processes of several machines may write to one folder, and process ids of two containers may be the same.
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(scratch, "wb") as file:
            np.savez(
                file,
                version=VERSION,
                paths=index.paths.blob,
                path_ends=index.paths.ends,
                targets=index.targets,
                heights=index.heights,
                widths=index.widths,
                classes=classes.blob,
                class_ends=classes.ends,
                bad=bad.blob,
                bad_ends=bad.ends,
                folders=names.blob,
                folder_ends=names.ends,
                mtimes=folders.mtimes,
            )
        os.replace(scratch, path)
    except OSError as error:
        with suppress(OSError):
            scratch.unlink()
        raise DataError(
            f"cannot write the index {path} ({error.strerror}): set data.index_dir to a folder that can be written"
        ) from error


def _read(path: Path, folder: Path) -> tuple[ImageIndex, Folders] | None:
    """The index in a file, or None if there is none, it is of another version, damaged, or no longer true."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if int(file["version"]) != VERSION:
                return None
            folders = Folders(list(Strings(file["folders"], file["folder_ends"])), file["mtimes"])
            if not folders.unchanged(folder):
                log.info("%s has changed since it was indexed", folder)
                return None
            index = ImageIndex(
                root=folder,
                classes=list(Strings(file["classes"], file["class_ends"])),
                paths=Strings(file["paths"], file["path_ends"]),
                targets=file["targets"],
                heights=file["heights"],
                widths=file["widths"],
                bad=list(Strings(file["bad"], file["bad_ends"])),
            )
            return index, folders
    except FileNotFoundError:
        return None
    except (OSError, KeyError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        log.warning("the index %s cannot be read (%s): building it anew", path, error)
        return None


def synthetic_index(count: int, classes: int, side: int) -> ImageIndex:
    """An index of ``count`` images that exist nowhere, spread evenly over the classes."""
    sizes = np.full(count, side, dtype=np.int32)
    return ImageIndex(
        root=Path("synthetic"),
        classes=[str(label) for label in range(classes)],
        paths=Strings.pack([""] * count),
        targets=(np.arange(count) % classes).astype(np.int32),
        heights=sizes,
        widths=sizes,
    )
