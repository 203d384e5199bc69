"""Every kind of source, with the same images in it.

A test file that uses these fixtures must bind them to names of its own.
"""

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from data import DataConfig, sources
from data.sources import SOURCES, EncodedSource, Source, open_source
from data.sources.folder import FolderSource
from data.sources.shards import ShardSource
from data.sources.synthetic import SyntheticSource
from data.sources.webdataset import WebDatasetSource
from data.sources.zip_file import ZipSource
from tests.archives import write_tars, write_zips
from tests.joined import JoinedSource, join
from tests.packing import pack

CLASSES, EACH = ("0", "1", "2"), 4  # possible class names of ImageNet, so that an evaluation set can use them


class Kind(NamedTuple):
    """A kind of source, and how its data set is made.

    Attributes:
        source: the class.
        make: writes the images of a folder into a new folder, in the form that the source reads, and returns
            ``data.root``.
    """

    source: type[EncodedSource]
    make: Callable[[Path, Path], Path]


def packed(images: Path, to: Path) -> Path:
    """Shards of both splits."""
    for split in ("train", "val"):
        pack(images, to, split, shard_size=5_000)
    return to


def deflated(images: Path, to: Path) -> Path:
    """A zip file for each split, compressed."""
    return write_zips(images, to, zipfile.ZIP_DEFLATED)


# A new source is a line here. "joined" is one that only the tests have.
ENCODED = {
    "folder": Kind(FolderSource, lambda images, to: images),
    "shards": Kind(ShardSource, packed),
    "tars": Kind(WebDatasetSource, write_tars),
    "zip": Kind(ZipSource, write_zips),
    "deflated zip": Kind(ZipSource, deflated),
    "joined": Kind(JoinedSource, lambda images, to: join(images, to.with_suffix(".joined"))),
}
SOURCE_CLASSES: dict[str, type[Source]] = {name: kind.source for name, kind in ENCODED.items()}
SOURCE_CLASSES["synthetic"] = SyntheticSource


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise images, all different, in two splits; one image of each split is CMYK."""
    root = tmp_path_factory.mktemp("sources") / "set"
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for i in range(EACH):
                pixels = rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
        Image.new("CMYK", (33, 22), (9, 80, 7, 60)).save(root / split / "2" / "print.jpg")
    return root


@pytest.fixture
def config(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> DataConfig:
    """The options that choose a kind of source; the test's parameter names it."""
    if request.param == "synthetic":
        return DataConfig(name="synthetic", crop=16, synthetic_images=120, synthetic_classes=3)
    kind = ENCODED[request.param]
    if kind.source not in SOURCES:
        monkeypatch.setattr(sources, "SOURCES", (kind.source, *SOURCES))
    root = kind.make(Path(shutil.copytree(folder, tmp_path / "set")), tmp_path / "images")
    return DataConfig(name="any", root=str(root), crop=16, resize=18)


def opened(cfg: DataConfig, split: str = "train") -> Source:
    """The source that the options choose."""
    source = open_source(cfg, split)
    assert source is not None
    return source


def encoded(cfg: DataConfig) -> EncodedSource:
    """The same for the training split of a source of files."""
    source = opened(cfg)
    assert isinstance(source, EncodedSource)
    return source
