"""Packed splits that several test files read."""

import shutil
from pathlib import Path

import pytest

from tests.archives import sample, write_tar
from tests.packing import pack


@pytest.fixture(scope="session")
def packed(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photographs in shards. Tests must not change them."""
    to = tmp_path_factory.mktemp("packed")
    for split in ("train", "val"):
        pack(photographs, to, split, shard_size=500_000)
    return to


@pytest.fixture
def own(packed: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(packed, tmp_path / "set"))


@pytest.fixture(scope="session")
def numbered(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photographs in class folders named 0, 1 and so on, each with a name of its own in the whole set."""
    root = tmp_path_factory.mktemp("numbered")
    for split in ("train", "val"):
        classes = sorted(folder for folder in (photographs / split).iterdir() if folder.is_dir())
        for number, folder in enumerate(classes):
            (root / split / str(number)).mkdir(parents=True)
            for image in sorted(image for image in folder.iterdir() if not image.name.startswith(".")):
                kind = image.suffix[1:]
                shutil.copy(image, root / split / str(number) / f"{folder.name}_{image.stem}_{kind}.{kind.lower()}")
    return root


@pytest.fixture
def timm_tars(tmp_path: Path) -> Path:
    """Three tar files with two images each, in timm's form."""
    for number in range(3):
        samples = {f"s{number}{i}": sample((2 * number + i) % 3, width=10 * number + i + 1) for i in range(2)}
        write_tar(tmp_path / "set" / f"imagenet1k-train-{number:04}.tar", **samples)
    write_tar(tmp_path / "set" / "imagenet1k-validation-00.tar", v=sample(1))
    return tmp_path / "set"
