"""The embedded data set: its archive, its config, and how it is unpacked."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torchvision.io import ImageReadMode, decode_image

from data.config import DataConfig
from data.errors import DataError
from data.sets.dataset import open_split
from data.sources.root import with_root
from data.storage.archive import PROJECT, unpacked
from data.storage.cache import cache_dir
from tests.opening import source_of

CLASSES = ["ankle-boot", "bag", "coat", "dress", "pullover", "sandal", "shirt", "sneaker", "t-shirt", "trouser"]


def embedded() -> DataConfig:
    """The config file merged into the defaults; an option that does not exist is an error."""
    file = OmegaConf.load(PROJECT / "conf" / "data" / "fashion_mnist.yaml")
    cfg = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DataConfig), file))
    assert isinstance(cfg, DataConfig)
    return cfg


def archive_and_hash() -> tuple[Path, str]:
    """The archive and the digest that the config names."""
    cfg = embedded()
    assert cfg.archive is not None
    assert cfg.archive_sha256 is not None
    return PROJECT / cfg.archive, cfg.archive_sha256


@pytest.fixture(scope="module")
def cfg(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DataConfig]:
    """The config, with a cache that is empty at first and shared by the tests of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield embedded()


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_archive_is_small_and_the_one_of_the_config() -> None:
    archive, sha256 = archive_and_hash()
    content = archive.read_bytes()
    assert len(content) < 8_000_000
    assert hashlib.sha256(content).hexdigest() == sha256


def root_of(cfg: DataConfig) -> Path:
    """The folder of the set; the archive is unpacked if needed."""
    return Path(str(with_root(cfg, unpack=True).root))


@pytest.mark.parametrize(("split", "count"), [pytest.param("train", 1000, marks=pytest.mark.slow), ("val", 200)])
def test_each_class_has_its_images(cfg: DataConfig, split: str, count: int) -> None:
    images = open_split(cfg, split, num_classes=10)
    assert images.index.classes == CLASSES
    assert np.bincount(images.labels).tolist() == [count] * 10
    assert not images.index.bad
    assert set(images.index.heights) == set(images.index.widths) == {28}


def test_training_images_have_the_mean_and_std_of_the_config(cfg: DataConfig) -> None:
    images = source_of(root_of(cfg), "train")
    pixels = np.stack([np.asarray(Image.open(str(images.path(i)))) for i in range(len(images))]) / 255
    assert cfg.mean == pytest.approx([pixels.mean()] * 3, abs=5e-5)
    assert cfg.std == pytest.approx([pixels.std()] * 3, abs=5e-5)


def test_pillow_and_torchvision_read_the_same_pixels(cfg: DataConfig) -> None:
    images = source_of(root_of(cfg), "val")
    for path in (str(images.path(i)) for i in range(0, len(images), 50)):
        by_pillow = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)
        assert torch.equal(decode_image(path, mode=ImageReadMode.RGB), by_pillow)


def test_licence_comes_along(cfg: DataConfig) -> None:
    text = (root_of(cfg) / "LICENSE").read_text(encoding="utf-8")
    assert "MIT License" in text
    assert "Zalando SE" in text


def test_second_call_does_not_unpack_again(cfg: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    first = root_of(cfg)
    monkeypatch.setattr("data.storage.archive.tarfile.open", lambda *_: pytest.fail("unpacked again"))
    assert root_of(cfg) == first
    assert first.parent == cache_dir()


@pytest.mark.usefixtures("empty_cache")
def test_wrong_hash_is_refused_as_damage() -> None:
    archive, _ = archive_and_hash()
    with pytest.raises(DataError, match=r"fashion_mnist\.tar\.xz is damaged"):
        unpacked(archive, "0" * 64)
    assert not cache_dir().exists()


@pytest.mark.usefixtures("empty_cache")
def test_archive_cut_short_is_refused_as_damage(tmp_path: Path) -> None:
    archive, sha256 = archive_and_hash()
    short = tmp_path / archive.name
    short.write_bytes(archive.read_bytes()[:-1000])
    with pytest.raises(DataError, match=r"fashion_mnist\.tar\.xz is damaged"):
        unpacked(short, sha256)
    assert not cache_dir().exists()
