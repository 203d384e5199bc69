"""The images of a training run: both splits, the plan of which images each step uses, and the batches."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from data import (
    Batch,
    BatchGeometry,
    DeviceAugment,
    EvalPlan,
    ImageSet,
    Loader,
    TrainPlan,
    build_backend,
    is_prepared,
    open_split,
    refuse_different_classes,
    stage,
    staged,
    staging_check,
    subset_rows,
)
from engine.errors import UserError
from engine.options.config import TrainConfig
from engine.processes.signals import StopRequest
from engine.runtime import Runtime
from engine.training_batches import TrainBatches, prepare

# Images at once with micro_batch_size=auto, unless the memory of a GPU decides (engine/measuring/memory.py).
IF_NOT_MEASURED = 128


class TrainingData:
    """Both splits of a run's images. The constructor checks everything that needs no model.

    Args:
        cfg: the settings, with a backend other than ``auto``.
        runtime: processes and device.

    Raises:
        UserError: or DataError, if images are missing or do not fit the settings.
    """

    def __init__(self, cfg: TrainConfig, runtime: Runtime):
        world = runtime.world
        self.cfg, self.runtime = cfg, runtime
        at_once = IF_NOT_MEASURED if isinstance(cfg.micro_batch_size, str) else cfg.micro_batch_size
        geometry = BatchGeometry(cfg.batch_size, cfg.augment.inseparable, world.size, world.rank, at_once)
        self.train_set, self.val_set = _open_splits(cfg, runtime)
        self.num_classes = _count_classes(cfg, self.train_set)
        self.first_validation_batch: Batch | None = None  # for the callback that draws it
        self.plan = TrainPlan(self.train_set.index, cfg.seed, cfg.data, cfg.augment, geometry)

    @property
    def geometry(self) -> BatchGeometry:
        """How a batch is split into micro-batches."""
        return self.plan.geometry

    @property
    def names(self) -> dict[int, str]:
        """The name of each class, by label."""
        return self.train_set.names

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in the order of their labels."""
        return [self.names[label] for label in sorted(self.names)]

    def fingerprint(self) -> str:
        """Return the fingerprint of the training images. A different set of images has a different fingerprint."""
        return self.train_set.index.fingerprint()

    def set_micro_batch_size(self, images: int) -> None:
        """Split each process's share of a batch into other micro-batches. Call this before :meth:`start`."""
        self.plan.geometry = replace(self.geometry, micro_batch_size=images)

    def start(self, stop: StopRequest) -> None:
        """Start the loaders. Call this once. The loaders check ``stop`` while they wait for a batch."""
        data, smoothing = self.cfg.data, self.cfg.augment.label_smoothing
        self.augment = DeviceAugment(data.mean, data.std, self.num_classes, smoothing).to(self.runtime.device)
        self._train = self._loader(self.train_set, self.geometry.largest_micro_batch, stop)
        self._val = self._loader(self.val_set, self.cfg.eval.batch_size, stop)

    def _loader(self, images: ImageSet, max_batch: int, stop: StopRequest) -> Loader:
        cfg, runtime = self.cfg, self.runtime
        workers, processes = runtime.workers(cfg.max_workers), runtime.world.local_size
        kind = cfg.data.backend
        backend = build_backend(kind, images.source, cfg.data, runtime.device, workers, max_batch, processes)
        return Loader(backend, images.labels, runtime.device, cfg.data.on_bad_image == "skip", stop.look)

    def training_batches(self, first: int, last: int) -> TrainBatches:
        """Return this process's micro-batches of the steps ``first`` + 1 to ``last``."""
        as_input = partial(prepare, augment=self.augment, runtime=self.runtime)
        return TrainBatches(self._train.train(self.plan, first, last), as_input, self.runtime.device)

    def validation_batches(self) -> Iterator[Batch]:
        """Yield this process's batches of the validation images."""
        world, plan = self.runtime.world, EvalPlan(self.val_set.index, self.cfg.data)
        for batch in self._val.evaluate(plan, self.cfg.eval.batch_size, world.size, world.rank):
            if self.first_validation_batch is None:
                self.first_validation_batch = batch
            yield batch


def _open_splits(cfg: TrainConfig, runtime: Runtime) -> tuple[ImageSet, ImageSet]:
    """Open the training and the validation split, and check them."""
    splits = (cfg.data.train_split, cfg.data.split)

    def index_and_stage() -> None:
        # The smaller validation split comes first, so that a mistake in it is found before the long indexing.
        for split in reversed(splits):
            open_split(cfg.data, split, cfg.model.num_classes, says=False)
        stage(cfg.data, splits)

    data, is_staged = staged(cfg.data), staging_check(cfg.data, splits)
    runtime.world.first_on_machine(index_and_stage, lambda: is_prepared(cfg.data, splits) and is_staged())
    train_set, val_set = (open_split(data, split, cfg.model.num_classes) for split in splits)
    refuse_different_classes(train_set.index.classes, val_set.index.classes)
    images = len(subset_rows(train_set.index.targets, cfg.data.subset))
    if images < cfg.batch_size:
        raise UserError(f"batch_size={cfg.batch_size} is more than the {images} training images: set it lower")
    return train_set, val_set


def _count_classes(cfg: TrainConfig, train_set: ImageSet) -> int:
    """Return the model's number of classes. The training images must have every class."""
    present = len(train_set.names)
    if present == 1:
        raise UserError(
            "the training images have only one class: a classifier needs 2 or more "
            f"(data.root must hold {cfg.data.train_split}/<class>/<image>)"
        )
    wanted = cfg.model.num_classes or train_set.num_classes
    if wanted != present:
        raise UserError(
            f"the model has {wanted} classes, but the training images have {present}: set model.num_classes={present}"
        )
    return wanted
