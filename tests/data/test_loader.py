"""Loaders: images have their labels, evaluation sees each image once, and a resumed run gets the same batches."""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.augment.device import DeviceAugment, DeviceDraws
from data.backends import build_backend
from data.config import AugmentConfig, DataConfig
from data.loader import Batch, Loader
from data.planning.geometry import BatchGeometry
from data.planning.plan import EvalPlan, TrainPlan
from data.sets.dataset import ImageSet, open_split
from tests.devices import on_devices

CPU = torch.device("cpu")
BACKENDS = ("torch", "dali")
COLOURS = {"2": (250, 0, 0), "10": (0, 250, 0), "7": (0, 0, 250), "0": (120, 120, 120)}  # by label


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images of one colour for each class. The folder names are labels that do not sort as text."""
    root = tmp_path_factory.mktemp("colours")
    for split in ("train", "val"):
        for name, colour in COLOURS.items():
            (root / split / name).mkdir(parents=True)
            for i in range(6):
                Image.new("RGB", (30 + i, 40 - i), colour).save(root / split / name / f"{i}.png")
    return root


def open_images(root: Path, split: str, crop: int = 32) -> tuple[DataConfig, ImageSet]:
    cfg = DataConfig(name="folder", root=str(root), crop=crop, resize=crop + 4)
    return cfg, open_split(cfg, split, num_classes=11)


def make_loader(
    kind: str, cfg: DataConfig, images: ImageSet, device: torch.device = CPU, workers: int = 0, most: int = 16
) -> Loader:
    return Loader(build_backend(kind, images.source, cfg, device, workers, most), images.labels, device)


def check_colours(batch: Batch) -> None:
    expected = torch.tensor([COLOURS[str(label)] for label in batch.labels.tolist()])
    assert torch.equal(batch.images.cpu().amin((2, 3)), expected.byte())
    assert torch.equal(batch.images.cpu().amax((2, 3)), expected.byte())


@on_devices
@pytest.mark.parametrize("kind", BACKENDS)
def test_labels_belong_to_the_images(colours: Path, kind: str, device: str) -> None:
    cfg, images = open_images(colours, "train")
    plan = TrainPlan(images.index, 0, cfg, AugmentConfig(mix_group=4), BatchGeometry(10, 4, micro_batch_size=4))
    batches = list(make_loader(kind, cfg, images, torch.device(device), workers=2).train(plan, 0, 6))
    assert [len(batch.labels) for batch in batches] == [4, 4, 2] * 6
    assert {label for batch in batches for label in batch.labels.tolist()} == {0, 2, 7, 10}
    for batch in batches:
        assert batch.images.device.type == batch.labels.device.type == device
        assert (batch.images.dtype, batch.labels.dtype) == (torch.uint8, torch.int64)
        check_colours(batch)
    val_cfg, val = open_images(colours, "val")
    for batch in make_loader(kind, val_cfg, val, torch.device(device)).evaluate(EvalPlan(val.index, val_cfg), 7, 1, 0):
        assert batch.draws is None
        check_colours(batch)


@pytest.mark.parametrize("batch_size", [1, 7, 24, 100])
@pytest.mark.parametrize("world", [1, 2, 3, 8, 30])
def test_evaluation_takes_every_image_once(colours: Path, world: int, batch_size: int) -> None:
    cfg, images = open_images(colours, "val", crop=4)
    plan = EvalPlan(images.index, cfg)
    rows, pixels = [], []
    for rank in range(world):
        for batch in make_loader("torch", cfg, images).evaluate(plan, batch_size, world, rank):
            assert 1 <= len(batch.labels) <= batch_size
            assert batch.labels.tolist() == images.labels[batch.index].tolist()
            rows += batch.index.tolist()
            pixels.append(batch.images)
    assert rows == list(range(24))
    whole = next(make_loader("torch", cfg, images).evaluate(plan, 24, 1, 0)).images
    assert torch.equal(torch.cat(pixels), whole)


def same_draws(a: DeviceDraws | None, b: DeviceDraws | None) -> bool:
    assert a is not None
    assert b is not None
    return a.mix == b.mix and np.array_equal(a.erase, b.erase) and a.noise == b.noise


@pytest.mark.parametrize(("kind", "workers"), [("torch", 0), ("torch", 2), ("dali", 2)])
def test_a_resumed_run_gets_the_same_batches(photographs: Path, kind: str, workers: int) -> None:
    cfg, images = open_images(photographs, "train")
    augment = AugmentConfig(mixup=0.8, cutmix=1.0, mix_group=2, random_erasing=0.5, label_smoothing=0.1)
    on_device = DeviceAugment(cfg.mean, cfg.std, images.num_classes, augment.label_smoothing)

    def batches(first: int, last: int) -> list[Batch]:
        plan = TrainPlan(images.index, 3, cfg, augment, BatchGeometry(10, 2, micro_batch_size=6))
        assert plan.steps_per_epoch == 3
        return list(make_loader(kind, cfg, images, workers=workers).train(plan, first, last))

    whole, resumed = batches(0, 7), batches(4, 7)
    assert len(whole) == 14
    for a, b in zip(whole[8:], resumed, strict=True):
        assert np.array_equal(a.index, b.index)
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.images, b.images)
        assert same_draws(a.draws, b.draws)
        outputs = []
        for batch in (a, b):
            assert batch.draws is not None
            outputs.append(on_device(batch.images, batch.labels, batch.draws))
        assert all(torch.equal(x, y) for x, y in zip(*outputs, strict=True))
    assert not np.array_equal(whole[0].index, whole[6].index)  # the next epoch has another order


def test_ranks_get_together_what_one_process_gets(photographs: Path) -> None:
    cfg, images = open_images(photographs, "train")
    augment = AugmentConfig(mix_group=2)

    def step(world: int) -> tuple[torch.Tensor, torch.Tensor]:
        batches = []
        for rank in range(world):
            plan = TrainPlan(images.index, 3, cfg, augment, BatchGeometry(10, 2, world, rank))
            batches += make_loader("torch", cfg, images).train(plan, 1, 2)
        return torch.cat([b.images for b in batches]), torch.cat([b.labels for b in batches])

    whole = step(1)
    for world in (2, 3, 5):
        assert all(torch.equal(a, b) for a, b in zip(step(world), whole, strict=True))


@pytest.mark.parametrize("kind", ["dali", "synthetic"])
def test_a_step_does_not_wait_for_the_plan(kind: str, photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread makes it, while the step before is computed."""
    cfg, images = open_images(photographs, "train")
    plan = TrainPlan(images.index, 3, cfg, AugmentConfig(mix_group=2), BatchGeometry(10, 2))
    planned: list[threading.Thread] = []

    def noted(method: Callable[..., object]) -> Callable[..., object]:
        def note(*args: object) -> object:
            planned.append(threading.current_thread())
            return method(*args)

        return note

    monkeypatch.setattr(plan, "crops", noted(plan.crops))
    monkeypatch.setattr(plan, "device_draws", noted(plan.device_draws))
    assert len(list(make_loader(kind, cfg, images).train(plan, 0, 5))) == 5
    assert len(planned) == 10
    assert threading.main_thread() not in planned


def test_synthetic_images_are_made_where_the_model_is() -> None:
    """On the meta device nothing has values, so any detour by way of the host is an error."""
    cfg = DataConfig(name="synthetic", crop=16, synthetic_images=200, synthetic_classes=10)
    images = open_split(cfg, cfg.train_split)
    plan = TrainPlan(images.index, 0, cfg, AugmentConfig(), BatchGeometry(50, 1))
    for batch in make_loader("synthetic", cfg, images, torch.device("meta")).train(plan, 0, 2):
        assert (batch.images.device.type, batch.images.shape) == ("meta", (50, 3, 16, 16))


def test_synthetic_images_are_fixed_and_flipped(tmp_path: Path) -> None:
    cfg = DataConfig(name="synthetic", crop=16, synthetic_images=200, synthetic_classes=10)
    images = open_split(cfg, cfg.train_split)
    assert (len(images), len(open_split(cfg, cfg.split)), images.num_classes) == (200, 5, 10)

    def epoch(hflip: float) -> dict[int, torch.Tensor]:
        plan = TrainPlan(images.index, 0, cfg, AugmentConfig(hflip=hflip), BatchGeometry(50, 32))
        batches = list(make_loader("synthetic", cfg, images).train(plan, 0, 4))
        assert [batch.images.shape for batch in batches] == [(50, 3, 16, 16)] * 4
        assert all(batch.labels.tolist() == (batch.index % 10).tolist() for batch in batches)
        return {int(i): image for batch in batches for i, image in zip(batch.index, batch.images, strict=True)}

    plain, again, mirrored = epoch(0.0), epoch(0.0), epoch(1.0)
    assert len(plain) == 200
    for i, image in plain.items():
        assert torch.equal(image, again[i])
        assert torch.equal(image, mirrored[i].flip(-1))
    assert not torch.equal(plain[0], plain[1])
