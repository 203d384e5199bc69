"""Prepared batches: what counts as waiting for one, and that a GPU makes them beside the step before."""

from collections.abc import Generator
from functools import partial
from itertools import count, islice
from time import sleep
from typing import Any

import pytest
import torch

from data import (
    Batch,
    BatchGeometry,
    DataConfig,
    DataError,
    DeviceAugment,
    Loader,
    TrainPlan,
    build_backend,
    open_split,
)
from engine.processes.distributed import World
from engine.runtime import Runtime
from engine.training_batches import TrainBatch, TrainBatches, prepare
from tests.devices import on_devices
from tests.plans import ALL

BUSY = 2 * 10**8  # a GPU needs about a tenth of a second for so many cycles
CPU = torch.device("cpu")


def as_it_is(batch: Any) -> Any:
    return batch


def test_the_time_between_asking_and_getting_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    batches: Generator[Any, None, None] = (number for number in range(3))
    seconds = count()
    monkeypatch.setattr("engine.training_batches.perf_counter", lambda: next(seconds))

    def slowly(batch: Any) -> Any:
        next(seconds)  # augmentation on a CPU is work, not waiting
        return batch

    timed = TrainBatches(batches, slowly, CPU)
    assert list(islice(timed, 2)) == [0, 1]
    assert [timed.pop_waited(), timed.pop_waited()] == [2, 0]
    assert list(timed) == [2]
    assert timed.pop_waited() == 2  # to find out that there are no more is a wait, too


def test_an_error_comes_when_its_batch_is_asked_for() -> None:
    """An unreadable image costs none of the steps before its own."""

    def batches() -> Generator[Any, None, None]:
        yield 0
        raise DataError("unreadable")

    timed = TrainBatches(batches(), as_it_is, CPU)
    assert list(islice(timed, 1)) == [0]
    with pytest.raises(DataError, match="unreadable"):
        next(timed)


@pytest.mark.gpu
def test_a_gpu_waits_only_while_it_has_nothing_to_compute() -> None:
    elsewhere = torch.cuda.Stream()

    def batches() -> Generator[Any, None, None]:
        sleep(0.05)  # the GPU has no work
        yield ()
        sleep(0.05)  # the GPU has work for a tenth of a second
        yield ()
        torch.cuda.current_stream().wait_stream(elsewhere)  # the GPU waits for a tenth of a second, the host does not
        yield ()

    timed = TrainBatches(batches(), as_it_is, torch.device("cuda"))
    torch.cuda.synchronize()
    next(timed)
    torch.cuda.synchronize()
    assert timed.pop_waited() >= 0.05
    torch.cuda._sleep(BUSY)
    next(timed)
    torch.cuda.synchronize()
    assert timed.pop_waited() < 0.02
    with torch.cuda.stream(elsewhere):
        torch.cuda._sleep(BUSY)
    next(timed)
    assert timed.pop_waited() == 0  # the GPU has not got there yet
    torch.cuda.synchronize()
    assert timed.pop_waited() >= 0.05


class Epoch:
    """Batches with every augmentation, of images that are on the device."""

    def __init__(self, device: torch.device):
        cfg = DataConfig(name="synthetic", crop=32, synthetic_images=400, synthetic_classes=10)
        self.device, self.images = device, open_split(cfg, cfg.train_split)
        self.plan = TrainPlan(self.images.index, 0, cfg, ALL, BatchGeometry(64, 8, micro_batch_size=32))
        self.backend = build_backend("synthetic", self.images.source, cfg, device, workers=0, max_batch=32)
        augment, runtime = DeviceAugment(cfg.mean, cfg.std, 10, 0.1).to(device), Runtime(World(0, 1, 0, 1), device)
        self.prepare = partial(prepare, augment=augment, runtime=runtime)

    def raw(self) -> Generator[Batch, None, None]:
        return Loader(self.backend, self.images.labels, self.device).train(self.plan, 0, self.plan.steps_per_epoch)

    def prepared(self) -> TrainBatches:
        return TrainBatches(self.raw(), self.prepare, self.device)


@on_devices
def test_prepared_batches_are_those_augmented_at_once(device: str) -> None:
    """A GPU reads each batch late, when the host has long let go of it and prepared others."""
    epoch, used = Epoch(torch.device(device)), []
    at_once = [epoch.prepare(batch) for batch in epoch.raw()]
    for images, targets in epoch.prepared():
        if device == "cuda":
            torch.cuda._sleep(BUSY // 10)
        used.append(TrainBatch(images.clone(), targets.clone()))
    assert len(used) == 12
    for ours, theirs in zip(used, at_once, strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.targets, theirs.targets)


@pytest.mark.gpu
def test_a_gpu_prepares_a_batch_while_it_computes() -> None:
    batches = Epoch(torch.device("cuda")).prepared()
    list(islice(batches, 4))  # loads the kernels and allocates the memory
    torch.cuda.synchronize()
    torch.cuda._sleep(BUSY)
    computed = torch.cuda.current_stream().record_event()
    next(batches)
    assert batches.side is not None
    batches.side.synchronize()
    assert not computed.query()
