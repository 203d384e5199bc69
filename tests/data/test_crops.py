"""Crop and erase boxes are distributed as in torchvision and timm, and are inside the image."""

import random

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from timm.data.random_erasing import RandomErasing
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as F

from data.planning.crops import BOXES, TRIES, centre_crops, random_erase_boxes, random_resized_boxes

DRAWS = 5000
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def boxes_of_one_size(
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    seed: int = 0,
    n: int = DRAWS,
    by: str = "area",
) -> NDArray:
    u = np.random.default_rng(seed).random((n, 4 * TRIES))
    return BOXES[by](u, np.full(n, height), np.full(n, width), scale, ratio)


def same_distribution(ours: NDArray, theirs: NDArray, height: int, width: int) -> None:
    """Two-sample tests of each property of a box: area, aspect ratio, height, width and position."""
    for name, of in {
        "area": lambda b: b[:, 2] * b[:, 3],
        "aspect": lambda b: b[:, 3] / b[:, 2],
        "height": lambda b: b[:, 2],
        "width": lambda b: b[:, 3],
        "top": lambda b: b[:, 0],
        "left": lambda b: b[:, 1],
        "place in the free rows": lambda b: b[:, 0] / np.maximum(height - b[:, 2], 1),
        "place in the free columns": lambda b: b[:, 1] / np.maximum(width - b[:, 3], 1),
    }.items():
        assert stats.ks_2samp(of(ours), of(theirs)).pvalue > 1e-3, name


@pytest.mark.parametrize(
    ("height", "width", "scale", "ratio"),
    [
        (375, 500, SCALE, RATIO),
        (160, 90, (0.5, 1.0), RATIO),  # many first tries do not fit
        (40, 400, (0.3, 1.0), RATIO),  # mostly the fallback, cut from the width
        (400, 40, (0.3, 1.0), RATIO),  # mostly the fallback, cut from the height
        (28, 28, (0.6, 1.0), (0.9, 1.2)),
    ],
)
def test_random_boxes_are_torchvisions(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    image = torch.empty(1, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        theirs = np.array([RandomResizedCrop.get_params(image, [*scale], [*ratio]) for _ in range(DRAWS)])
    same_distribution(boxes_of_one_size(height, width, scale, ratio), theirs, height, width)


def tensorflow_box(rng: random.Random, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]):
    """A box by the rule of TensorFlow's SampleDistortedBoundingBox without objects, one number after the other.

    TensorFlow leaves out the last place in each direction, a pixel.
    """
    least, most = (share * height * width for share in scale)
    for _ in range(100):
        aspect = rng.uniform(*ratio)
        low, high = round((least / aspect) ** 0.5), round((most / aspect) ** 0.5)
        while high > height or round(high * aspect) > width:
            high -= 1
        tall = rng.randint(min(low, high), high)
        tall += tall * round(tall * aspect) < least
        tall -= tall * round(tall * aspect) > most
        wide = round(tall * aspect)
        if least <= tall * wide <= most and 0 < wide <= width and 0 < tall <= height:
            return rng.randint(0, height - tall), rng.randint(0, width - wide), tall, wide
    return 0, 0, height, width


@pytest.mark.parametrize(
    ("height", "width", "scale"),
    [(375, 500, (0.05, 1.0)), (500, 333, (0.05, 1.0)), (400, 40, (0.05, 1.0)), (400, 40, (0.3, 1.0))],
)
def test_boxes_by_height_are_tensorflows(height: int, width: int, scale: tuple[float, float]) -> None:
    rng, ratio = random.Random(1), (0.75, 1.33)
    theirs = np.array([tensorflow_box(rng, height, width, scale, ratio) for _ in range(DRAWS)])
    same_distribution(boxes_of_one_size(height, width, scale, ratio, by="height"), theirs, height, width)


def test_boxes_by_height_are_smaller() -> None:
    area, by_height = (boxes_of_one_size(375, 500, (0.05, 1), RATIO, by=by)[:, 2:].prod(1).mean() for by in BOXES)
    assert by_height < 0.85 * area


def test_size_shape_and_place_of_a_box_are_independent() -> None:
    top, left, height, width = boxes_of_one_size(1000, 1000, (0.1, 0.3), RATIO).T  # so small that all first tries fit
    numbers = [height * width, np.log(width / height), top / (1000 - height), left / (1000 - width)]
    off_diagonal = np.corrcoef(numbers)[~np.eye(4, dtype=bool)]
    assert np.abs(off_diagonal).max() < 5 / np.sqrt(DRAWS)


def test_every_image_has_its_own_size() -> None:
    u = np.random.default_rng(0).random((3, 4 * TRIES))
    height, width = np.array([300, 40, 500]), np.array([200, 400, 500])
    together = random_resized_boxes(u, height, width, SCALE, RATIO)
    alone = [random_resized_boxes(u[i : i + 1], height[i : i + 1], width[i : i + 1], SCALE, RATIO) for i in range(3)]
    assert np.array_equal(together, np.concatenate(alone))


@given(
    height=st.integers(1, 5000),
    width=st.integers(1, 5000),
    low=st.floats(0.001, 1),
    high=st.floats(0.001, 1),
    ratio=st.sampled_from([RATIO, (1.0, 1.0), (0.1, 10.0), (0.5, 0.6)]),
    seed=st.integers(0, 1000),
    by=st.sampled_from(sorted(BOXES)),
)
@example(height=1, width=1, low=0.08, high=1, ratio=RATIO, seed=0, by="area")
@example(height=1, width=5000, low=0.08, high=1, ratio=RATIO, seed=0, by="area")
@example(height=5000, width=1, low=0.08, high=1, ratio=RATIO, seed=0, by="area")
@example(height=5000, width=1, low=0.08, high=1, ratio=RATIO, seed=0, by="height")
def test_random_boxes_lie_inside_the_image(
    height: int, width: int, low: float, high: float, ratio: tuple[float, float], seed: int, by: str
) -> None:
    boxes = boxes_of_one_size(height, width, (min(low, high), max(low, high)), ratio, seed, n=50, by=by)
    assert boxes.dtype == np.int32
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] >= 1).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= [height, width]).all()


@pytest.mark.parametrize("by", BOXES)
@pytest.mark.parametrize("corner", [0.0, 1 - 2**-53])
def test_boxes_of_extreme_draws_lie_inside_the_image(corner: float, by: str) -> None:
    u = np.full((1, 4 * TRIES), corner)
    ((top, left, height, width),) = BOXES[by](u, np.array([300]), np.array([451]), SCALE, RATIO)
    assert 0 <= top <= 300 - height
    assert 0 <= left <= 451 - width


@given(
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    resize=st.integers(1, 300),
    crop=st.integers(1, 300),
)
@example(height=375, width=500, resize=256, crop=224)
@example(height=500, width=375, resize=256, crop=224)
@example(height=333, width=500, resize=235, crop=224)
@example(height=28, width=28, resize=28, crop=28)
@example(height=300, width=300, resize=221, crop=224)  # resized to a size below the crop, so padded
def test_centre_crops_are_torchvisions(height: int, width: int, resize: int, crop: int) -> None:
    size = F.resize(torch.empty(1, height, width, device="meta"), [resize]).shape[1:]  # no pixels are computed
    rows = F.center_crop(torch.arange(1, size[0] + 1).view(-1, 1).expand(size), [crop, crop]).amax(1)
    columns = F.center_crop(torch.arange(1, size[1] + 1).view(1, -1).expand(size), [crop, crop]).amax(0)
    ours = centre_crops(np.array([7]), np.array([height]), np.array([width]), resize, crop)
    assert ours.index.tolist() == [7]
    assert ours.box.tolist() == [[0, 0, height, width]]
    assert ours.size.tolist() == [[*size]]
    assert not ours.flip.any()
    for side, start, theirs in zip(size, ours.window[0].tolist(), (rows, columns), strict=True):
        taken = torch.arange(start, start + crop)
        assert torch.equal(theirs, torch.where((taken >= 0) & (taken < side), taken + 1, 0))


@pytest.mark.parametrize("side", [64, 28])
def test_erase_boxes_are_timms(side: int) -> None:
    images = torch.ones(DRAWS, 1, side, side)
    state = random.getstate()
    random.seed(2)
    RandomErasing(probability=0.5, mode="const", device="cpu")(images)
    random.setstate(state)
    gone = images[:, 0] == 0
    starts = [gone.any(dim).int().argmax(1) for dim in (2, 1)]
    extents = [gone.any(dim).sum(1) for dim in (2, 1)]
    theirs = torch.stack([*starts, *extents], dim=1).numpy()
    ours = random_erase_boxes(np.random.default_rng(0).random((DRAWS, 1 + 4 * TRIES)), 0.5, side)
    ours, theirs = (boxes[boxes[:, 2] > 0] for boxes in (ours, theirs))
    assert len(ours) / DRAWS == pytest.approx(len(theirs) / DRAWS, abs=0.04)
    same_distribution(ours, theirs, side, side)


@given(side=st.integers(4, 400), probability=st.floats(0, 1), seed=st.integers(0, 1000))
def test_erase_boxes_lie_inside_the_image(side: int, probability: float, seed: int) -> None:
    boxes = random_erase_boxes(np.random.default_rng(seed).random((50, 1 + 4 * TRIES)), probability, side)
    assert (boxes >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= side).all()


def test_as_many_images_are_erased_as_asked_for() -> None:
    u = np.random.default_rng(0).random((DRAWS, 1 + 4 * TRIES))
    u[:2, 0] = 0, 1 - 2**-53  # the smallest and the largest draw
    shares = [(random_erase_boxes(u, p, 224)[:, 2] > 0).mean() for p in (0.0, 0.25, 1.0)]
    assert shares == pytest.approx([0, 0.25, 1], abs=0.02)
    assert shares[0] == 0


def test_an_image_into_which_no_try_fits_is_not_erased() -> None:
    u = np.full((1, 1 + 4 * TRIES), 1 - 1e-9)  # the largest area with the largest ratio is higher than the image
    u[:, 0] = 0
    assert not random_erase_boxes(u, 1.0, 64).any()
    u[:, -3] = 0.5  # the last try: a square of the same area
    assert random_erase_boxes(u, 1.0, 64)[0, 2:].tolist() == [37, 37]
