"""The drawn operations give timm's pixels, whatever other images are in the batch."""

import os
import random
import signal
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment as timm
from torch import Tensor

from data.augment.auto_augment import PIXELS_AT_ONCE, carry_out
from data.augment.levels import LEVELS, Op, operations
from data.augment.policies import AutoDraws, policies
from data.planning.draws import Stream, uniforms
from tests import pictures as shown
from tests.pictures import FILL, SIDE, as_batch, difference
from tests.runs import in_a_fork

device, images = shown.device, shown.images
STEP = 1.0  # in units of 1/255: largest mean difference allowed for an image; nearly all are far below


def done(batch: Tensor, draws: AutoDraws, cubic: bool = True) -> Tensor:
    everywhere = np.full(draws.ops.shape, cubic)
    fill = torch.tensor(FILL, dtype=torch.uint8, device=batch.device).view(1, 3, 1, 1)
    return carry_out(batch, draws, everywhere, fill)


def the_same(op: Op, arg: float, count: int) -> AutoDraws:
    return AutoDraws(np.full((count, 1), op, dtype=np.int8), np.full((count, 1), arg))


def drawn(auto: str, count: int) -> AutoDraws:
    """The draws of a policy and of the colour jitter that follows it."""
    chosen = policies(auto, 0.4, SIDE)
    draws = [p.draw(uniforms(seed, 0, Stream.AUTO, 0, count, p.uniforms)) for seed, p in enumerate(chosen, 1)]
    return AutoDraws.joined(draws)


@pytest.mark.parametrize("name", sorted(set(LEVELS) - {"GaussianBlurRand"}))
@pytest.mark.parametrize("resample", [Image.Resampling.BICUBIC, Image.Resampling.BILINEAR])
def test_every_operation_at_every_magnitude_is_timms(images, device, name, resample) -> None:
    for magnitude in range(11):
        for u in (0.25, 0.75):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(timm.random, "random", lambda u=u: 1 - u)  # the sign
                op = timm.AugmentOp(name, 1.0, magnitude, {"img_mean": FILL, "interpolation": resample})
                expected = [op(image) for image in images]
            (kind,), (arg,) = operations([name], np.zeros(1, dtype=np.int64), np.array([magnitude / 10]), np.array([u]))
            made = done(as_batch(images, device), the_same(Op(kind), arg, len(images)), resample.name == "BICUBIC")
            assert difference(made, expected).max() < STEP / 5, (magnitude, u)


def test_operations_follow_one_another(images, device) -> None:
    names = ("Solarize", "Rotate", "Color")
    by_timm = [timm.AugmentOp(n, 1.0, 7, {"img_mean": FILL, "interpolation": Image.Resampling.BICUBIC}) for n in names]
    expected = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm.random, "random", lambda: 0.3)
        for image in images:
            for op in by_timm:
                image = op(image)
            expected.append(image)
    chosen = np.tile([0, 1, 2], (len(images), 1))
    ops, args = operations(list(names), chosen, np.full(chosen.shape, 0.7), np.full(chosen.shape, 0.7))
    assert difference(done(as_batch(images, device), AutoDraws(ops, args)), expected).max() < STEP
    backwards = AutoDraws(ops[:, ::-1], args[:, ::-1])
    assert difference(done(as_batch(images, device), backwards), expected).max() > 5 * STEP


@pytest.mark.parametrize("auto", ["rand-m9-mstd0.5-inc1", "rand-n4-mstd101", "trivial", "3a"])
def test_an_image_does_not_see_the_others(images, device, auto) -> None:
    batch = as_batch(images, device).repeat(8, 1, 1, 1)
    draws = drawn(auto, len(batch))
    before = batch.clone()
    whole = done(batch, draws)
    assert torch.equal(batch, before)
    for size in (1, 7, 32):
        parts = [
            done(batch[i : i + size], AutoDraws(draws.ops[i : i + size], draws.args[i : i + size]))
            for i in range(0, len(batch), size)
        ]
        assert torch.equal(torch.cat(parts), whole)
    untouched = (draws.ops == Op.NONE).all(axis=1)
    assert torch.equal(whole[torch.from_numpy(untouched)], batch[torch.from_numpy(untouched)])
    changed = (whole != batch).flatten(1).any(dim=1).cpu().numpy()
    assert changed.mean() > 0.5 * (~untouched).mean()


@pytest.mark.parametrize("auto", ["rand-m9-mstd0.5-inc1", "rand-n4-mstd101", "trivial", "3a"])
@pytest.mark.parametrize("at_once", [3, 1000])
def test_operations_done_together_as_on_a_gpu_change_no_pixel(images, monkeypatch, auto, at_once) -> None:
    batch = as_batch([*images, *(image.rotate(180) for image in images)]).repeat(6, 1, 1, 1)
    draws, fill = drawn(auto, len(batch)), torch.tensor(FILL, dtype=torch.uint8).view(1, 3, 1, 1)
    cubic = np.random.default_rng(0).random(draws.ops.shape) < 0.5
    pixels = batch[0, 0].numel()
    monkeypatch.setitem(PIXELS_AT_ONCE, "cpu", pixels)
    alone = carry_out(batch, draws, cubic, fill)
    monkeypatch.setitem(PIXELS_AT_ONCE, "cpu", at_once * pixels)
    assert torch.equal(carry_out(batch, draws, cubic, fill), alone)


@pytest.mark.parametrize("auto", ["rand-m9-mstd0.5-inc1", "3a"])
def test_threads_share_the_images_and_change_no_pixel(images, auto, set_threads) -> None:
    batch = as_batch(images, torch.device("cpu")).repeat(8, 1, 1, 1)
    draws = drawn(auto, len(batch))
    made = []
    for threads in (1, 3):
        set_threads(threads)
        made.append(done(batch, draws))
        assert torch.get_num_threads() == threads
    assert torch.equal(*made)


def fork_between_batches() -> None:
    torch.set_num_threads(2)
    PIXELS_AT_ONCE["cpu"] = 1  # each image is work for a thread
    draws = the_same(Op.INVERT, 0, 4)
    batch = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    done(batch, draws)
    child = os.fork()
    if child:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    signal.alarm(200)  # ends it if it waits for a thread that it does not have
    os._exit(0 if (done(batch, draws) == 255).all() else 1)


def test_a_fork_has_threads_of_its_own() -> None:
    assert in_a_fork(fork_between_batches) == 0


@pytest.mark.gpu
def test_a_gpu_makes_the_same_pixels_without_waiting(images) -> None:
    batch = as_batch(images).repeat(8, 1, 1, 1)
    (policy,) = policies("rand-m9-mstd0.5-inc1", 0.0, SIDE)
    draws = policy.draw(uniforms(1, 0, Stream.AUTO, 0, len(batch), policy.uniforms))
    there, fill = batch.cuda(), torch.tensor(FILL, dtype=torch.uint8, device="cuda").view(1, 3, 1, 1)
    carry_out(there, draws, None, fill)
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_gpu = carry_out(there, draws, None, fill)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert (on_gpu.cpu().float() - done(batch, draws).float()).abs().mean(dim=(1, 2, 3)).max() < STEP / 10


@pytest.mark.parametrize("auto", ["rand-m9-mstd0.5-inc1", "rand-m9-mstd0.5-tweights", "3a"])
def test_augmented_images_have_the_statistics_of_timms(images, device, auto) -> None:
    """Four statistics of the pixels of one photograph have the same mean over many draws as with timm."""
    count, image = 1500, images[0].resize((48, 48))
    (policy,) = policies(auto, 0.0, 48)
    draws = policy.draw(uniforms(9, 0, Stream.AUTO, 0, count, policy.uniforms))
    ours = done(as_batch([image], device).expand(count, -1, -1, -1), draws)
    parse = timm.rand_augment_transform if auto.startswith("rand") else timm.auto_augment_transform
    transform = parse(auto, {"img_mean": FILL, "interpolation": Image.Resampling.BICUBIC})
    random.seed(1)
    np.random.seed(1)
    theirs = as_batch([transform(image) for _ in range(count)])
    a, b = (pixels.cpu().double().flatten(1) for pixels in (ours, theirs))
    for statistic in (
        lambda pixels: pixels.mean(1),
        lambda pixels: pixels.std(1),
        lambda pixels: (pixels.mean(1) - pixels.mean()).abs(),
        lambda pixels: pixels.diff().abs().mean(1),
    ):
        x, y = statistic(a), statistic(b)
        error = (x.var() / count + y.var() / count).sqrt()
        assert abs(x.mean() - y.mean()) < 4 * error
