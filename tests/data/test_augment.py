"""The arithmetic on the device is timm's, and does not depend on how a batch is cut."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from scipy import stats
from timm.data.mixup import Mixup as TimmMixup
from timm.data.mixup import mixup_target
from torch import Tensor

from data.augment.device import ERASED_AT_ONCE, DeviceAugment, DeviceDraws
from data.augment.levels import Op
from data.augment.mixing import Cutmix, Mix, Mixup
from data.augment.policies import AutoDraws
from data.config import AugmentConfig, DataConfig
from data.planning.geometry import BatchGeometry
from data.planning.plan import TrainPlan
from data.sources.synthetic import SyntheticSource
from tests.launches import Launches, fake_gpu
from tests.pictures import FILL, as_batch, difference, pictures
from tests.runs import PROJECT

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CLASSES, SIDE = 10, 32
NOTHING = DeviceDraws(None, [])


@pytest.fixture
def augment() -> DeviceAugment:
    return DeviceAugment(MEAN, STD, CLASSES, smoothing=0.1)


def make_batch(n: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (n, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    return images, torch.randint(CLASSES, (n,), generator=generator)


def test_images_are_normalised_by_channel(augment: DeviceAugment) -> None:
    images, labels = make_batch()
    out, _ = augment(images, labels, NOTHING)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (MEAN, STD))
    assert out.dtype == torch.float32
    assert torch.allclose(out.double(), (images.double() / 255 - mean) / std, rtol=0, atol=2e-6)


def test_denormalise_gives_the_images_back(augment: DeviceAugment) -> None:
    every_value = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    assert torch.equal(augment.denormalise(augment.normalise(every_value)), every_value)
    beyond = torch.tensor([-100.0, 100.0]).view(1, 1, 1, 2).expand(1, 3, 1, 2)
    assert augment.denormalise(beyond)[0, 0, 0].tolist() == [0, 255]


def test_targets_are_smoothed_labels(augment: DeviceAugment) -> None:
    images, labels = make_batch()
    _, targets = augment(images, labels, NOTHING)
    assert torch.equal(targets.argmax(1), labels)
    assert targets[0, labels[0]].item() == pytest.approx(0.91)
    assert targets.sum(1).tolist() == pytest.approx([1.0] * 8)
    assert torch.equal(targets, mixup_target(labels, CLASSES, 1.0, 0.1))


def test_the_batch_given_stays_as_it_is(augment: DeviceAugment) -> None:
    images, labels = make_batch()
    augment(images, labels, DeviceDraws(np.full((8, 4), 8, dtype=np.int32), [Mixup(slice(0, 8), 0.3)]))
    assert torch.equal(images, make_batch()[0])
    assert torch.equal(labels, make_batch()[1])


@pytest.mark.parametrize("at_once", [1, 5, 64])  # as on a CPU, and as on a GPU
def test_erasing_changes_only_the_box_and_fills_it_with_noise(
    augment: DeviceAugment, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setitem(ERASED_AT_ONCE, "cpu", at_once)
    images, labels = make_batch(64)
    boxes = np.tile(np.array([3, 5, 20, 11], dtype=np.int32), (64, 1))
    boxes[1::2] = 0
    boxes[2::4] = 0, 9, 6, 23
    plain, _ = augment(images, labels, NOTHING)
    erased, _ = augment(images, labels, DeviceDraws(boxes, []))
    inside = torch.zeros(64, SIDE, SIDE, dtype=torch.bool)
    inside[::4, 3:23, 5:16] = True
    inside[2::4, :6, 9:] = True
    inside = inside.unsqueeze(1).expand(-1, 3, -1, -1)
    assert torch.equal(erased[~inside], plain[~inside])
    noise = erased[inside].double()
    assert noise.mean().item() == pytest.approx(0, abs=5 / len(noise) ** 0.5)
    assert noise.std().item() == pytest.approx(1, abs=5 / len(noise) ** 0.5)
    assert stats.kstest(noise.numpy(), "norm").pvalue > 1e-3
    assert len(noise.unique()) > 0.99 * len(noise)  # own noise for each pixel and channel


def test_noise_depends_on_its_seed_alone(augment: DeviceAugment) -> None:
    """So batches may be augmented at any time and in any order."""
    boxes = np.full((8, 4), 8, dtype=np.int32)
    before = torch.get_rng_state()
    first, other, again = (augment(*make_batch(), DeviceDraws(boxes, [], noise=seed))[0] for seed in (3, 2**63 - 1, 3))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert (first[:, :, 8:16, 8:16] != other[:, :, 8:16, 8:16]).float().mean() > 0.99


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_movements_fill_with_the_mean_colour_and_interpolate_as_the_data_do(interpolation: str) -> None:
    photographs = pictures(64)
    n = len(photographs)
    expected = [
        image.rotate(20, resample=Image.Resampling[interpolation.upper()], fillcolor=FILL) for image in photographs
    ]
    augment = DeviceAugment(MEAN, STD, CLASSES)
    assert tuple(augment.fill.flatten().tolist()) == FILL
    turned = AutoDraws(np.full((n, 1), Op.ROTATE, dtype=np.int8), np.full((n, 1), 20.0))
    images, labels = as_batch(photographs), torch.zeros(n, dtype=torch.int64)
    boxes = np.tile(np.array([0, 0, 8, 8], dtype=np.int32), (n, 1))
    cubic = np.full((n, 1), interpolation == "bicubic")
    out, _ = augment(images, labels, DeviceDraws(boxes, [], turned, cubic))
    corner, pixels = out[:, :, :8, :8], augment.denormalise(out)
    assert corner.std().item() == pytest.approx(1, abs=0.1)  # erased last, with noise of standard deviation 1
    pixels[:, :, :8, :8] = as_batch(expected)[:, :, :8, :8]
    assert difference(pixels, expected).max() < 0.1


def by_timm(images: Tensor, labels: Tensor, mix: Mix, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor]:
    """One group after timm's Mixup in batch mode, which is made to draw this weight or box."""
    timm = TimmMixup(mixup_alpha=0.8, cutmix_alpha=1.0, mode="batch", label_smoothing=0.1, num_classes=CLASSES)
    with monkeypatch.context() as patch:
        patch.setattr(timm, "_params_per_batch", lambda: (mix.lam, isinstance(mix, Cutmix)))
        if isinstance(mix, Cutmix):
            top, left, height, width = mix.box
            patch.setattr("timm.data.mixup.rand_bbox", lambda *_, **__: (top, top + height, left, left + width))
        return timm(images, labels)


@pytest.mark.parametrize("n", [2, 8])
@pytest.mark.parametrize(
    ("lam", "box"),
    [
        (0.3, None),
        (0.999, None),
        (0.0, None),
        (1 - 10 * 14 / SIDE**2, (4, 9, 10, 14)),
        (0.0, (0, 0, SIDE, SIDE)),
        (1 - SIDE / SIDE**2, (31, 0, 1, SIDE)),
    ],
)
def test_mixing_is_timms(
    augment: DeviceAugment, monkeypatch: pytest.MonkeyPatch, n: int, lam: float, box: tuple[int, int, int, int] | None
) -> None:
    images, labels = make_batch(n)
    mix = Mixup(slice(0, n), lam) if box is None else Cutmix(slice(0, n), lam, box)
    ours, our_targets = augment(images, labels, DeviceDraws(None, [mix]))
    theirs, their_targets = by_timm(augment.normalise(images), labels, mix, monkeypatch)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)
    assert torch.allclose(our_targets, their_targets, rtol=0, atol=1e-7)
    assert torch.allclose(our_targets, mixup_target(labels, CLASSES, lam, 0.1), rtol=0, atol=1e-7)


def test_groups_are_mixed_each_by_itself(augment: DeviceAugment) -> None:
    images, labels = make_batch(11)
    groups = [Mixup(slice(0, 4), 0.3), Cutmix(slice(8, 11), 0.75, (0, 0, 16, 16))]  # 4 to 7 are not mixed
    together, targets = augment(images, labels, DeviceDraws(None, groups))
    for group in (*groups, Mixup(slice(4, 8), 1.0)):
        rows = group.rows
        draws = DeviceDraws(None, [replace(group, rows=slice(0, rows.stop - rows.start))])
        alone, alone_targets = augment(images[rows], labels[rows], draws)
        assert torch.equal(together[rows], alone)
        assert torch.equal(targets[rows], alone_targets)
    plain, _ = augment(images, labels, NOTHING)
    assert torch.equal(together[4:8], plain[4:8])
    assert torch.equal(together[9], plain[9])  # in the middle of its group, so mixed with itself


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("micro", [None, 4])
@pytest.mark.parametrize("auto", [None, "rand-m9-mstd0.5-inc1"])
def test_a_batch_augmented_in_parts_is_the_whole_one(
    augment: DeviceAugment, world: int, micro: int | None, auto: str | None
) -> None:
    batch = 38
    config = AugmentConfig(mixup=0.8, cutmix=1.0, mixup_prob=0.7, mix_group=4, auto_augment=auto, color_jitter=0.4)
    index, data = SyntheticSource(batch, CLASSES, SIDE).index, DataConfig(name="any", crop=SIDE)
    images, labels = make_batch(batch)

    def parts(world: int, micro: int | None) -> tuple[Tensor, Tensor]:
        done = []
        for rank in range(world):
            plan = TrainPlan(index, 0, data, config, BatchGeometry(batch, 4, world, rank, micro))
            for epoch, positions in plan.positions(0):
                rows = slice(positions.start, positions.stop)
                done.append(augment(images[rows], labels[rows], plan.device_draws(epoch, positions)))
        out, targets = zip(*done, strict=True)
        return torch.cat(out), torch.cat(targets)

    (whole, whole_targets), (cut, cut_targets) = parts(1, None), parts(world, micro)
    assert torch.equal(cut, whole)
    assert torch.equal(cut_targets, whole_targets)


def test_the_full_recipe_launches_at_most_250_kernels_a_batch_and_never_waits_for_the_gpu() -> None:
    config = AugmentConfig(**OmegaConf.load(PROJECT / "conf/recipe/lipsformer.yaml").augment)
    data, batch = DataConfig(name="any"), 128
    index, geometry = SyntheticSource(10 * batch, 1000, data.crop).index, BatchGeometry(batch, config.mix_group)
    plan = TrainPlan(index, 0, data, config, geometry)
    with fake_gpu():
        augment = DeviceAugment(MEAN, STD, 1000, config.label_smoothing).to("cuda")
        images = torch.empty(batch, 3, data.crop, data.crop, dtype=torch.uint8, device="cuda")
        labels = torch.empty(batch, dtype=torch.int64, device="cuda")
        for step in range(10):
            ((epoch, positions),) = plan.positions(step)
            draws = plan.device_draws(epoch, positions)
            assert draws.auto is not None and draws.erase is not None and len(draws.mix) == batch // config.mix_group
            with Launches() as launches:
                augment(images, labels, draws)
            assert 150 < launches.counts.total() <= 250
