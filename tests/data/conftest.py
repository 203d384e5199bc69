"""Packed splits that several test files read."""

import shutil
from pathlib import Path

import pytest

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
