"""How fast this machine's data loader decodes, and whether its pixels are those of a CPU."""

import time
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image

from data import DataConfig, EncodedSource, EvalPlan, build_backend, open_source
from data.backends import has_dali
from engine.device import default_workers, tune
from scripts.machine.row import TRAINED, Row, verdict

IMAGES = 64  # in a batch; all batches are the same
UNTIMED, TIMED = 3, 20  # batches
TOLERANCE = 2.0  # mean absolute difference of an image, in steps of 1/255, as in tests/data/test_backend_pixels.py


def check() -> Iterator[Row]:
    """Yield the rows of this subject."""
    if not has_dali():
        return  # the versions say so
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device, workers = torch.device("cuda", 0) if gpus else torch.device("cpu"), default_workers(max(1, gpus))
    tune(device)  # as training does
    if gpus:
        torch.cuda.set_device(device)
    with TemporaryDirectory() as folder:
        cfg = DataConfig(name="folder", root=folder)
        write_images(Path(folder) / "train" / "noise")
        source = open_source(cfg, "train")
        assert isinstance(source, EncodedSource)
        rate, images = decoded(source, cfg, device, workers)
        _, expected = decoded(source, cfg, torch.device("cpu"), 0, "torch", batches=1)
    where = "GPU" if gpus else "CPU"
    value = f"{rate:.0f} images/s on the {where}, with {workers} threads for it"
    advice = f"an H200 trains {TRAINED}/s and would wait: give it more cores, and see docs/debugging.md"
    yield Row("DALI decoding", value, verdict(rate, TRAINED, TRAINED / 10) if gpus else "ok", advice)
    yield same_pixels(images, expected)


def write_images(folder: Path) -> None:
    """Write JPEGs of the size of ImageNet's: smooth random colours with a little noise."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), dtype=np.float32)
        noisy = smooth + rng.normal(0, 12, (375, 500, 1))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.jpg", quality=90)


def decoded(
    source: EncodedSource, cfg: DataConfig, device: torch.device, workers: int, kind: str = "dali", batches: int = TIMED
) -> tuple[float, torch.Tensor]:
    """Return images per second, and one batch of uint8 images ``(n, 3, side, side)``."""
    backend = build_backend(kind, source, cfg, device, workers, IMAGES)
    crops = EvalPlan(source.index, cfg).crops(range(IMAGES))
    stream = backend.batches(repeat(crops, UNTIMED + batches))
    first = [next(stream) for _ in range(UNTIMED)]
    started = time.perf_counter()
    for _ in stream:
        pass
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return batches * IMAGES / (time.perf_counter() - started), first[0]


def same_pixels(images: torch.Tensor, expected: torch.Tensor) -> Row:
    """Compare the images ``(n, 3, side, side)`` of two decoders."""
    worst = (images.cpu().float() - expected.float()).abs().mean((1, 2, 3)).max().item()
    value = f"{worst:.2f}/255 from Pillow's, in the worst of {len(images)} images"
    advice = "the decoder changes the images: train with data.backend=torch, and try another driver"
    return Row("DALI pixels", value, "ok" if worst <= TOLERANCE else "bad", advice)
