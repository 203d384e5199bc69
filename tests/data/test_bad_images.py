"""Images that become unreadable during training: tried again, replaced if wanted, but never replaced in evaluation."""

import errno
import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.backends import build_backend
from data.concurrency.waiting import no_check
from data.config import AugmentConfig, DataConfig
from data.errors import BadImage, DataError
from data.loader import Batch, Loader
from data.planning.crops import Crops
from data.planning.geometry import BatchGeometry
from data.planning.plan import EvalPlan, TrainPlan
from data.sets.dataset import open_split
from data.sources import EncodedSource, Source
from data.sources.shards import ShardSource
from tests.packing import pack

CPU = torch.device("cpu")
BACKENDS = [("torch", 0), ("dali", 2)]
STEPS = 12  # two epochs
BAD = 17  # row of the image that is damaged


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.sources.source.PAUSES", (0.0, 0.0))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """120 images of two classes, each with its own colour."""
    for i in range(120):
        path = tmp_path / "set" / "train" / "ab"[i % 2] / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24 + i % 5, 20), (i, 0, 0)).save(path)
    return tmp_path / "set"


def batches(
    root: Path,
    kind: str,
    workers: int = 0,
    skip: bool = True,
    damage: Callable[[Source], None] = lambda _: None,
    world: int = 1,
    steps: range = range(STEPS),
) -> list[Batch]:
    """The batches of all processes together; the images are opened before they are damaged."""
    cfg = DataConfig(name="folder", root=str(root), crop=16)
    images = open_split(cfg, "train")
    damage(images.source)
    found = []
    for rank in range(world):
        plan = TrainPlan(images.index, 5, cfg, AugmentConfig(mix_group=5), BatchGeometry(20, 5, world, rank, 5))
        backend = build_backend(kind, images.source, cfg, CPU, workers, 20)
        found.append(list(Loader(backend, images.labels, CPU, skip).train(plan, steps.start, steps.stop)))
    each = len(found[0]) // len(steps)
    return [batch for step in range(len(steps)) for mine in found for batch in mine[step * each : (step + 1) * each]]


def pixels(batches: list[Batch]) -> torch.Tensor:
    return torch.cat([batch.images for batch in batches])


def rows(batches: list[Batch]) -> np.ndarray:
    return np.concatenate([batch.index for batch in batches])


def cut_short(source: Source) -> None:
    """Damage one image in a way that opening the split does not notice."""
    if isinstance(source, ShardSource):
        begin, length = source.byte_range(BAD)
        with open(source.shard(BAD), "r+b") as file:
            file.seek(begin + 30)
            file.write(bytes(length - 30))
    else:
        os.truncate(path_of(source, BAD), 40)


def path_of(source: Source, i: int) -> str:
    """The file of an image in a folder."""
    assert isinstance(source, EncodedSource)
    return str(source.path(i))


def test_another_image_takes_the_place_on_any_backend_layout_and_number_of_processes(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = batches(root, "torch")
    pack(root, tmp_path / "packed")
    first = batches(root, "torch", damage=cut_short)
    assert caplog.text.count("another image replaces it") == 1
    assert "2 times an image was replaced by another, because 1 images cannot be read" in caplog.text
    bad = rows(whole) == BAD
    assert bad.sum() == 2
    assert BAD not in rows(first)
    assert np.array_equal(rows(first) == rows(whole), ~bad)
    assert torch.equal(pixels(first)[~bad], pixels(whole)[~bad])
    for batch in first:  # labels and pixels are those of the image that replaces it
        assert torch.equal(batch.images.amax((1, 2, 3)).long() % 2, batch.labels)
    others = [
        batches(root, "dali", workers=2),
        batches(root, "torch", world=2),
        *(batches(tmp_path / "packed", *kind, damage=cut_short) for kind in BACKENDS),
    ]
    for other in others:
        assert np.array_equal(rows(other), rows(first))
        assert torch.equal(pixels(other), pixels(first))
    resumed = batches(root, "torch", steps=range(7, STEPS))
    assert torch.equal(pixels(resumed), pixels(first)[7 * 20 :])


@pytest.mark.slow
def test_worker_processes_start_again_without_the_image(root: Path) -> None:
    first = batches(root, "torch", damage=cut_short)
    assert torch.equal(pixels(batches(root, "torch", workers=2)), pixels(first))


@pytest.mark.parametrize(("kind", "workers"), BACKENDS)
def test_without_that_it_is_an_error(root: Path, kind: str, workers: int) -> None:
    with pytest.raises(DataError, match=r"a/034\.png cannot be decoded"):
        batches(root, kind, workers, skip=False, damage=cut_short)


def test_too_many_are_an_error(root: Path) -> None:
    def all_gone(source: Source) -> None:
        for row in range(0, 120, 3):
            os.unlink(path_of(source, row))

    with pytest.raises(DataError, match=r"3 of the training images cannot be read, which is too many"):
        batches(root, "torch", damage=all_gone)


def test_where_no_image_of_the_subset_can_be_read_it_is_an_error(root: Path) -> None:
    cfg = DataConfig(name="folder", root=str(root), crop=16, subset=0.02)  # one image of each class
    images = open_split(cfg, "train")
    plan = TrainPlan(images.index, 5, cfg, AugmentConfig(mix_group=1), BatchGeometry(2, 1))
    for row in plan.rows:
        os.truncate(path_of(images.source, row), 40)
    loader = Loader(build_backend("torch", images.source, cfg, CPU, 0, 2), images.labels, CPU, skip_bad=True)
    with pytest.raises(DataError, match="2 of the training images cannot be read, which is too many"):
        list(loader.train(plan, 0, 1))


def test_an_evaluation_takes_no_other_image(root: Path) -> None:
    cfg = DataConfig(name="folder", root=str(root), crop=16, split="train")
    images = open_split(cfg, "train")
    cut_short(images.source)
    loader = Loader(build_backend("torch", images.source, cfg, CPU, 0, 20), images.labels, CPU, skip_bad=True)
    with pytest.raises(DataError, match=r"cannot be decoded"):
        list(loader.evaluate(EvalPlan(images.index, cfg), 20, 1, 0))


@pytest.mark.parametrize("kind", ["torch", "dali"])
def test_a_read_that_fails_for_a_moment_changes_nothing(
    root: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = batches(root, "torch", steps=range(3))
    pack(root, tmp_path / "packed")
    read, failures = os.pread, []

    def failing(descriptor: int, length: int, offset: int) -> bytes:
        if len(failures) < 2:
            failures.append(offset)
            raise OSError(errno.ESTALE, "Stale file handle")
        return read(descriptor, length, offset)

    monkeypatch.setattr("data.sources.byte_ranges.os.pread", failing)
    assert torch.equal(pixels(batches(tmp_path / "packed", kind, skip=False, steps=range(3))), pixels(whole))
    assert len(failures) == 2


def test_dali_starts_again_where_a_file_was_gone_for_a_moment(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """DALI reads paths itself. After its error all images are read again, and then none is bad."""
    whole = batches(root, "torch", steps=range(3))
    away: list[tuple[str, str]] = []

    def hide(source: Source) -> None:
        path = path_of(source, int(whole[5].index[2]))
        away.append((path + ".away", path))
        os.rename(path, path + ".away")

    read = EncodedSource.read

    def back(source: EncodedSource, row: int) -> bytes:
        while away:
            os.rename(*away.pop())
        return read(source, row)

    monkeypatch.setattr(EncodedSource, "read", back)
    assert torch.equal(pixels(batches(root, "dali", skip=False, damage=hide, steps=range(3))), pixels(whole))
    assert "trying again" in caplog.text


class Undecided:
    """A backend that cannot decode some requests, and does not know which image of them is bad.

    Args:
        failures: by the first image of a request, how often it fails.
    """

    def __init__(self, failures: dict[int, int]):
        self.failures = failures
        self.asked: list[int] = []

    def batches(
        self, requests: Iterator[Crops], look: Callable[[], object] = no_check
    ) -> Generator[torch.Tensor, None, None]:
        for crops in requests:
            first = int(crops.index[0])
            self.asked.append(first)
            if self.asked.count(first) <= self.failures.get(first, 0):
                raise BadImage(f"the batch of image {first} cannot be decoded")
            yield torch.zeros(len(crops), 3, 16, 16, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("failures", "asked"),
    [({0: 9}, [0, 0]), ({0: 1, 20: 9}, [0, 0, 20, 20]), ({0: 1, 20: 1, 40: 9}, [0, 0, 20, 20, 40, 40])],
)
def test_a_batch_that_fails_again_is_an_error_also_after_others_that_failed_once(
    root: Path, failures: dict[int, int], asked: list[int]
) -> None:
    cfg = DataConfig(name="folder", root=str(root), crop=16)
    images, backend = open_split(cfg, "train"), Undecided(failures)
    with pytest.raises(BadImage, match=f"the batch of image {asked[-1]} cannot be decoded"):
        list(Loader(backend, images.labels, CPU).evaluate(EvalPlan(images.index, cfg), 20, 1, 0))
    assert backend.asked == asked
