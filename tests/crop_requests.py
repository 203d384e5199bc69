"""Requests like those of the plans, and backends that answer them."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from data.backends import Backend, build_backend
from data.config import DataConfig
from data.errors import DataError
from data.planning.crops import TRIES, Crops, centre_crops, random_resized_boxes
from data.sources import EncodedSource, Source
from tests.opening import source_of

CPU, GPU = torch.device("cpu"), torch.device("cuda")
MODES = ("train", "eval")
BACKENDS = ("torch", "dali")


def options(interpolation: str, crop: int) -> DataConfig:
    return DataConfig(name="photographs", crop=crop, resize=crop * 8 // 7, interpolation=interpolation)


def images_of(root: Path) -> EncodedSource:
    return source_of(root, on_bad_image="skip")


def make_crops(source: Source, cfg: DataConfig, mode: str, seed: int = 0) -> Crops:
    """One crop of each image, made by the plan."""
    index, rows = source.index, np.arange(len(source))
    if mode == "eval":
        return centre_crops(rows, index.heights, index.widths, cfg.resize, cfg.crop, cfg.interpolation != "bilinear")
    rng = np.random.default_rng(seed)
    u = rng.random((len(rows), 4 * TRIES))
    return Crops(
        index=rows,
        box=random_resized_boxes(u, index.heights, index.widths, (0.08, 1.0), (3 / 4, 4 / 3)),
        size=np.full((len(rows), 2), cfg.crop, dtype=np.int32),
        window=np.zeros((len(rows), 2), dtype=np.int32),
        flip=rng.random(len(rows)) < 0.5,
        cubic=rng.random(len(rows)) < {"bicubic": 1.0, "bilinear": 0.0, "random": 0.5}[cfg.interpolation],
    )


def take(crops: Crops, rows: slice) -> Crops:
    return Crops(*(getattr(crops, field.name)[rows] for field in fields(Crops)))


def in_batches(crops: Crops, size: int) -> list[Crops]:
    return [take(crops, slice(start, start + size)) for start in range(0, len(crops), size)]


def build(
    kind: str, source: Source, cfg: DataConfig, workers: int = 0, max_batch: int = 8, device: torch.device = CPU
) -> Backend:
    return build_backend(kind, source, cfg, device, workers, max_batch)


def run(backend: Backend, requests: list[Crops]) -> list[Tensor]:
    batches = list(backend.batches(iter(requests)))
    assert [len(images) for images in batches] == [len(crops) for crops in requests]
    return batches


def refusal(backend: Backend, requests: list[Crops]) -> str:
    """The one-line message with which a backend stops."""
    with pytest.raises(DataError) as refused:
        run(backend, requests)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def write_rgb(folder: Path, image: Image.Image) -> None:
    """Write both kinds of JPEG that store RGB: one says so in Adobe's marker, the other in its component ids."""
    image.save(folder / "rgb.jpg", quality=90, keep_rgb=True)
    content = (folder / "rgb.jpg").read_bytes()
    segment = content.index(b"\xff\xee\0\x0eAdobe")
    (folder / "ids.jpg").write_bytes(content[:segment] + content[segment + 16 :])


def write_cmyk(folder: Path, image: Image.Image) -> None:
    """Write each kind of CMYK JPEG: Adobe's with inverted colours, as CMYK and as YCCK, and one that is not Adobe's."""
    colours = np.array(image.convert("CMYK"))
    colours[..., 3] = 255 - np.asarray(image.convert("L"))
    Image.frombytes("CMYK", image.size, colours.tobytes()).save(folder / "adobe.jpg", quality=90)
    content = (folder / "adobe.jpg").read_bytes()
    segment = content.index(b"Adobe") - 4  # two bytes of marker, two of length
    transform = segment + 15
    assert content[segment : segment + 4] == b"\xff\xee\0\x0e"
    (folder / "ycck.jpg").write_bytes(content[:transform] + b"\2" + content[transform + 1 :])
    (folder / "plain.jpg").write_bytes(content[:segment] + content[segment + 16 :])
