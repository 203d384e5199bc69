"""Small versions of ImageNet's official tar files: the same names and nesting, few images, few classes."""

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import skimage.data
from PIL import Image

from data.errors import DataError
from data.prepare import Task, prepare
from data.prepare.ground_truth import image_name, validation_classes
from data.prepare.originals import TRAIN_TAR, VAL_TAR
from tests.runs import PROJECT, environment

IMAGES = 5  # of each class, in training


def jpeg(seed: int, width: int = 60, height: int = 50, **options) -> bytes:
    """A small JPEG; each seed gives another one."""
    picture = Image.fromarray(skimage.data.astronaut()).crop((seed, seed, seed + 200, seed + 170))
    content = io.BytesIO()
    picture.resize((width, height)).save(content, format="JPEG", **options)
    return content.getvalue()


def tar_of(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return content.getvalue()


def val_labels(images: int) -> dict[str, str]:
    """Name and class of the first ``images`` validation images."""
    known = validation_classes(None, Path("nowhere"))
    return {image_name(n): known[image_name(n)] for n in range(1, images + 1)}


def write_official(folder: Path, images: int = 4, extra: dict[str, bytes] | None = None) -> dict[str, bytes]:
    """Write the tar files, and return the images in them by their paths in the prepared set.

    Args:
        folder: where to write.
        images: number of validation images; the training images have the same classes.
        extra: additional files in the tar file of the first class.
    """
    folder.mkdir(parents=True)
    val = val_labels(images)
    classes = sorted(set(val.values()))
    train = {
        name: {f"{name}_{7 * i}.JPEG": jpeg(10 * c + i, 60 + i, 50 + c) for i in range(IMAGES)}
        for c, name in enumerate(classes)
    }
    first = train[classes[0]] | (extra or {})
    tars = {f"{name}.tar": tar_of(first if name == classes[0] else train[name]) for name in reversed(classes)}
    (folder / TRAIN_TAR).write_bytes(tar_of(tars))
    flat = {f"{name}.JPEG": jpeg(100 + i) for i, name in enumerate(val)}
    (folder / VAL_TAR).write_bytes(tar_of(dict(reversed(flat.items()))))
    made = {f"train/{name}/{file}": data for name, files in train.items() for file, data in files.items()}
    return made | {f"val/{val[name.removesuffix('.JPEG')]}/{name}": data for name, data in flat.items()}


def files_in(root: Path) -> dict[str, bytes]:
    """All visible files below a folder, except the notes on how it was prepared."""
    found = (path for path in root.rglob("*") if path.is_file() and not path.name.startswith((".", "prepared-")))
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


def refused(task: Task) -> str:
    """The one-line message with which a task is refused."""
    with pytest.raises(DataError) as caught:
        prepare(task)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def task(**options) -> Task:
    plain = {"tars": None, "folder": None, "to": None, "layout": "folder", "splits": ["train", "val"], "workers": 1}
    return Task(**(plain | options))


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small official tar files. Tests must not change them."""
    folder = tmp_path_factory.mktemp("official") / "tars"
    write_official(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images as class folders."""
    root = tmp_path_factory.mktemp("folder") / "set"
    for name, content in write_official(root.with_name("tars")).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def command(*arguments: object) -> list[str]:
    """The command line of ``prepare_imagenet.py``."""
    return [sys.executable, str(PROJECT / "scripts/prepare_imagenet.py"), *map(str, arguments)]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Prepare as a user does."""
    return subprocess.run(command(*arguments), env=environment(), capture_output=True, text=True, timeout=200)
