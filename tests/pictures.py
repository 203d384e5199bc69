"""Pictures to try image operations on, as PIL images and as batches."""

import os
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from numpy.typing import ArrayLike
from PIL import Image
from torch import Tensor

from data.augment.auto_augment import FUNCTIONS
from data.augment.layer import Layer
from data.augment.levels import Op
from tests.devices import DEVICES

SIDE = 96
FILL = (124, 116, 104)


def pictures(side: int) -> list[Image.Image]:
    """Photographs, a dark and a pale one, an image of a single colour, noise, and a gradient with a little texture.

    With ``TEST_IMAGES=DIR``, also some photographs from that folder.
    """
    photographs = [
        Image.fromarray(getattr(skimage.data, name)()) for name in ("astronaut", "chelsea", "coffee", "rocket")
    ]
    if "TEST_IMAGES" in os.environ:
        files = sorted(Path(os.environ["TEST_IMAGES"]).rglob("*.JPEG"))[::25]
        photographs += [Image.open(file).convert("RGB") for file in files]
    small = [photograph.resize((side, side)) for photograph in photographs]
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
    slope = np.add.outer(np.arange(side), np.arange(side))[..., None] * (100 / side) + rng.normal(20, 4, noise.shape)
    return [
        *small,
        small[0].point(lambda value: value // 4),
        small[1].point(lambda value: 128 + value // 3),
        Image.new("RGB", (side, side), (90, 30, 200)),
        Image.fromarray(noise),
        Image.fromarray(slope.clip(0, 255).astype(np.uint8)),
    ]


@pytest.fixture(scope="module", params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """Each device. A test file that uses this fixture or the next one must bind it to a name of its own."""
    return request.param


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    """The pictures, ``SIDE`` pixels wide and high."""
    return pictures(SIDE)


def as_batch(images: list[Image.Image], device: str = "cpu") -> Tensor:
    """uint8 ``(n, 3, height, width)``."""
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images]).to(device)


def operated(images: Tensor, op: Op, args: ArrayLike = 0.0, cubic: ArrayLike = True) -> Tensor:
    """The images after one operation, all done together."""
    n = len(images)
    fill = torch.tensor(FILL, dtype=torch.uint8, device=images.device).view(1, 3, 1, 1)
    layer = Layer(np.full(n, op), np.broadcast_to(args, n).astype(float), np.broadcast_to(cubic, n), fill)
    return FUNCTIONS[op](images, layer).byte()


def difference(made: Tensor, expected: list[Image.Image]) -> Tensor:
    """Mean absolute difference of each image, in steps of 1/255."""
    assert made.dtype == torch.uint8
    return (made.cpu().float() - as_batch(expected).float()).abs().mean(dim=(1, 2, 3))
