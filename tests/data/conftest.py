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
