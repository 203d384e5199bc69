"""The images of a training run: both splits, what comes in which step, and the batches."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import islice
from time import perf_counter

from data import (
    Batch,
    BatchGeometry,
    EvalPlan,
    ImageSet,
    Loader,
    TrainPlan,
    build_backend,
    is_prepared,
    open_split,
    refuse_different_classes,
    subset_rows,
)
from engine.config import TrainConfig
from engine.errors import UserError
from engine.runtime import Runtime
from engine.signals import StopRequest
from engine.span import span


class TrainingData:
    """Both splits of a run's images. Opening them checks all that can be checked before a model is built.

    Args:
        cfg: the settings, with the backend that was chosen.
        runtime: processes and device.

    Raises:
        UserError: or DataError if images are missing, or do not fit the settings.
    """

    def __init__(self, cfg: TrainConfig, runtime: Runtime):
        world = runtime.world
        self.cfg, self.runtime = cfg, runtime
        self.geometry = BatchGeometry(
            cfg.batch_size, cfg.augment.mix_group, world.size, world.rank, cfg.micro_batch_size
        )
        self.train_set, self.val_set = _open_splits(cfg, runtime)
        self.num_classes = _count_classes(cfg, self.train_set)
        self.first_validation_batch: Batch | None = None  # for a picture
        self.plan = TrainPlan(self.train_set.index, cfg.seed, cfg.data, cfg.augment, self.geometry)

    @property
    def names(self) -> dict[int, str]:
        """Name of each class."""
        return self.train_set.names

    def fingerprint(self) -> str:
        """Of the training images: another set has another."""
        return self.train_set.index.fingerprint()

    def start(self, stop: StopRequest) -> None:
        """Start to read. To be called once; ``stop`` is looked at while batches are waited for."""
        self._train = self._loader(self.train_set, self.geometry.largest_micro_batch, stop)
        self._val = self._loader(self.val_set, self.cfg.eval.batch_size, stop)

    def _loader(self, images: ImageSet, max_batch: int, stop: StopRequest) -> Loader:
        cfg, runtime = self.cfg, self.runtime
        workers, processes = runtime.workers(cfg.max_workers), runtime.world.local_size
        kind = cfg.data.backend
        backend = build_backend(kind, images.source, cfg.data, runtime.device, workers, max_batch, processes)
        return Loader(backend, images.labels, runtime.device, cfg.data.on_bad_image == "skip", stop.look)

    def training_batches(self, first: int, last: int) -> "TimedBatches":
        """This process's micro-batches of the steps after ``first`` up to ``last``."""
        return TimedBatches(self._train.train(self.plan, first, last))

    def validation_batches(self) -> Iterator[Batch]:
        """This process's batches of the validation images."""
        world, plan = self.runtime.world, EvalPlan(self.val_set.index, self.cfg.data)
        for batch in self._val.evaluate(plan, self.cfg.eval.batch_size, world.size, world.rank):
            if self.first_validation_batch is None:
                self.first_validation_batch = batch
            yield batch


@dataclass
class TimedBatches:
    """Batches, and the time spent waiting for them.

    Attributes:
        waited: seconds, since the last :meth:`pop_waited`.
    """

    batches: Generator[Batch, None, None]
    waited: float = 0.0

    def take(self, count: int) -> Iterator[Batch]:
        """The next ``count`` batches, each made when it is asked for."""
        return islice(self, count)

    def pop_waited(self) -> float:
        """Seconds waited since the last call."""
        waited, self.waited = self.waited, 0.0
        return waited

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        started = perf_counter()
        try:
            with span("data wait"):
                return next(self.batches)
        finally:
            self.waited += perf_counter() - started

    def close(self) -> None:
        """Stop to read ahead."""
        self.batches.close()


def _open_splits(cfg: TrainConfig, runtime: Runtime) -> tuple[ImageSet, ImageSet]:
    """Both splits with their labels."""
    splits = (cfg.data.train_split, cfg.data.split)

    def prepare() -> None:
        for split in reversed(splits):  # the smaller one first: a mistake in it is not said after an hour of indexing
            open_split(cfg.data, split, cfg.model.num_classes)

    runtime.world.first_on_machine(prepare, lambda: is_prepared(cfg.data, splits))
    train_set, val_set = (open_split(cfg.data, split, cfg.model.num_classes) for split in splits)
    refuse_different_classes(train_set.index.classes, val_set.index.classes)
    images = len(subset_rows(train_set.index.targets, cfg.data.subset))
    if images < cfg.batch_size:
        raise UserError(f"batch_size={cfg.batch_size} is more than the {images} training images: set it lower")
    return train_set, val_set


def _count_classes(cfg: TrainConfig, train_set: ImageSet) -> int:
    """Classes of the model: the labels of the training images must be all of them."""
    present = len(train_set.names)
    if present == 1:
        raise UserError(
            "the training images are of one class: a classifier needs 2 or more "
            f"(data.root must hold {cfg.data.train_split}/<class>/<image>)"
        )
    wanted = cfg.model.num_classes or train_set.num_classes
    if wanted != present:
        raise UserError(
            f"the model has {wanted} classes and the training images {present}: set model.num_classes={present}"
        )
    return wanted
