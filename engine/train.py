"""A training run, from its settings to its last line."""

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data import (
    BatchGeometry,
    DeviceAugment,
    EvalPlan,
    ImageSet,
    Loader,
    TrainPlan,
    build_backend,
    differing,
    is_prepared,
    open_split,
    refuse_different_classes,
    resolve_backend,
    subset_rows,
)
from engine.batch_norm import refuse_lone_images, wants_sync_bn
from engine.checkpoint import Checkpoints, load_checkpoint
from engine.config import TrainConfig
from engine.data_wait import DataWait
from engine.device import check_amp, choose_device, default_workers, peak_flops, tune
from engine.distributed import World
from engine.errors import UserError
from engine.flight_recorder import FlightRecorder
from engine.flops import forward_flops
from engine.instruments import Instruments
from engine.log import log_to
from engine.loggers import build_logger
from engine.run_dir import RunDirectory, refuse_other_recipe
from engine.scoring import Scores, evaluate
from engine.settings import as_container
from engine.signals import StopRequest
from engine.stepper import Stepper, autocast
from engine.summary import conclude, describe
from engine.trainer import Trainer
from models import build_model, family_of, read_weights, refuse_unknown, start_from
from optim import build_optimizer, build_schedule, spectral_norms
from stability import StabilityMonitor

log = logging.getLogger(__name__)


def train(cfg: TrainConfig) -> None:
    """Train, evaluate and save; go on where the run stopped.

    Raises:
        UserError: or another of ``engine.errors.USER_ERRORS``, before any training, if it cannot be done as asked.
        RunStopped: if the run ended early.
    """
    refuse_unknown(cfg.model.name)
    world = World.from_environment()
    device = choose_device(cfg.device, world.local_rank)
    check_amp(cfg.amp, device)
    tune(device)
    run = RunDirectory(str(cfg.output_dir))
    run.adopt(cfg)
    weights = _starting_weights(cfg, run)
    cfg.data.backend = resolve_backend(cfg.data)
    geometry = BatchGeometry(cfg.batch_size, cfg.augment.mix_group, world.size, world.rank, cfg.micro_batch_size)
    train_set, val_set, num_classes = _open_data(cfg, world)
    model = _new_model(cfg, num_classes)
    notices = _start(model, weights, cfg)
    del weights  # the model has its own by now
    run.refuse_unwritable()
    log_to(run.log, world.is_main)
    for notice in notices:
        log.info("%s", notice)
    with run.locked() if world.is_main else nullcontext(), world.joined(device):
        trainer = _build(cfg, world, device, run, geometry, train_set, val_set, model, num_classes)
        if trainer.done == 0:
            describe(trainer, len(val_set))
        if trainer.done >= trainer.stop_at:
            log.info("the run had ended at step %d: set epochs or max_steps higher to train on", trainer.done)
        try:
            scores = trainer.fit()
        finally:
            trainer.logger.finish()
    if world.is_main:
        conclude(trainer, scores)


def _starting_weights(cfg: TrainConfig, run: RunDirectory) -> dict[str, Tensor] | None:
    """What ``checkpoint.start`` names, read before anything that takes long; None for a run that goes on."""
    goes_on = run.has_checkpoints() or cfg.resume not in ("auto", "never")
    return None if cfg.checkpoint.start is None or goes_on else read_weights(cfg.checkpoint.start)


def _start(model: nn.Module, weights: dict[str, Tensor] | None, cfg: TrainConfig) -> list[str]:
    """Load the starting weights, if there are any; what to say about them."""
    if weights is None:
        return []
    fitted = start_from(model, weights, cfg.checkpoint.start)
    return [f"starting from the weights in {cfg.checkpoint.start}", *fitted]


def _open_data(cfg: TrainConfig, world: World) -> tuple[ImageSet, ImageSet, int]:
    """Both splits with their labels, and the number of classes the model needs."""
    splits = (cfg.data.train_split, cfg.data.split)

    def prepare() -> None:
        for split in reversed(splits):  # the smaller one first: a mistake in it is not said after an hour of indexing
            open_split(cfg.data, split, cfg.model.num_classes)

    world.first_on_machine(prepare, lambda: is_prepared(cfg.data, splits))
    train_set, val_set = (open_split(cfg.data, split, cfg.model.num_classes) for split in splits)
    refuse_different_classes(train_set.index.classes, val_set.index.classes)
    images = len(subset_rows(train_set.index.targets, cfg.data.subset))
    if images < cfg.batch_size:
        raise UserError(f"batch_size={cfg.batch_size} is more than the {images} training images: set it lower")
    return train_set, val_set, _count_classes(cfg, train_set)


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


def _new_model(cfg: TrainConfig, num_classes: int) -> nn.Module:
    torch.manual_seed(cfg.seed)
    return build_model(cfg.model, num_classes, cfg.data.crop)


def _build(
    cfg: TrainConfig,
    world: World,
    device: torch.device,
    run: RunDirectory,
    geometry: BatchGeometry,
    train_set: ImageSet,
    val_set: ImageSet,
    model: nn.Module,
    num_classes: int,
) -> Trainer:
    """The trainer, standing where the run stopped."""
    checkpoints = Checkpoints(run.checkpoints, cfg.checkpoint.keep)
    state = _find_checkpoint(cfg, run, checkpoints, train_set, world)
    peak = peak_flops(device, cfg.amp)
    flops = forward_flops(model, cfg.data.crop) if peak else None
    plan = TrainPlan(train_set.index, cfg.seed, cfg.data, cfg.augment, geometry)
    stepper = _new_stepper(cfg, world, device, geometry, model, num_classes, plan.steps_per_epoch)
    stop = StopRequest()
    train_loader = _loader(cfg, world, device, train_set, geometry.largest_micro_batch, stop)
    val_loader = _loader(cfg, world, device, val_set, cfg.eval.batch_size, stop)

    def validate() -> Scores:
        batches = val_loader.evaluate(EvalPlan(val_set.index, cfg.data), cfg.eval.batch_size, world.size, world.rank)
        stepper.share_buffers()
        return evaluate(stepper.best_network, batches, stepper.augment, world, device, cfg.amp, stepper.memory_format)

    run_id = _wandb_id(cfg, state)
    logger = build_logger(cfg.logger, str(cfg.name), run.path, as_container(cfg), run_id, world.is_main)
    about = {"family": family_of(cfg.model), "processes": world.size, "config": as_container(cfg)}
    trainer = Trainer(
        cfg=cfg,
        run=run,
        world=world,
        plan=plan,
        batches=lambda first, last: train_loader.train(plan, first, last),
        stepper=stepper,
        validate=validate,
        logger=logger,
        checkpoints=checkpoints,
        instruments=Instruments(_new_monitor(cfg, stepper), cfg.monitor.every, run, logger),
        recorder=FlightRecorder(world, plan, train_set.source.name, checkpoints, run, about, cfg.monitor.history),
        data_wait=DataWait(cfg, device, world.local_size),
        stop=stop,
        names=train_set.names,
        fingerprint=train_set.index.fingerprint(),
        model_flops=flops,
        peak_flops=peak,
    )
    if state is not None:
        trainer.load(state, str(run.checkpoints))
        log.info("going on from step %d of %s", trainer.done, run.path)
    _refuse_different_starts(world, device, trainer)
    if world.is_main:
        run.begin(cfg, trainer.done)
    return trainer


def _wandb_id(cfg: TrainConfig, state: dict[str, Any] | None) -> str | None:
    """The W&B run to go on with. A copy of a run's directory under another name is another run."""
    return state["wandb_id"] if state is not None and state["config"]["name"] == cfg.name else None


def _new_stepper(
    cfg: TrainConfig,
    world: World,
    device: torch.device,
    geometry: BatchGeometry,
    model: nn.Module,
    num_classes: int,
    steps_per_epoch: int,
) -> Stepper:
    """The model on its device, with all that changes it."""
    if wants_sync_bn(cfg.sync_bn, model, world, device):
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    else:
        refuse_lone_images(model, geometry, cfg.data.crop)
    model = model.to(device)
    steps = cfg.epochs * steps_per_epoch
    optimizer = build_optimizer(cfg.optim, model, cfg.batch_size)
    schedule = build_schedule(cfg.schedule, cfg.optim, optimizer, cfg.batch_size, steps, steps_per_epoch)
    augment = DeviceAugment(cfg.data.mean, cfg.data.std, num_classes, cfg.augment.smoothing).to(device)
    return Stepper(model, optimizer, schedule, augment, cfg, world, device)


def _new_monitor(cfg: TrainConfig, stepper: Stepper) -> StabilityMonitor:
    """A monitor that sees the model as the stepper runs it."""
    return StabilityMonitor(
        stepper.model,
        spectral_norms=lambda: spectral_norms(stepper.optimizer),
        precision=lambda: autocast(stepper.device, cfg.amp),
        most_images=cfg.monitor.images,
    )


def _refuse_different_starts(world: World, device: torch.device, trainer: Trainer) -> None:
    """Raise where processes found different checkpoints, or one found none."""
    weights = sum(p.detach().double().abs().sum() for p in trainer.stepper.parameters)
    start = torch.tensor([trainer.done, float(weights)], dtype=torch.float64, device=device)
    if any(row != start.tolist() for row in world.gather(start)):
        raise UserError(
            f"the processes would go on from different steps: output_dir={trainer.run.path} must be on storage "
            "that all machines share"
        )


def _loader(
    cfg: TrainConfig, world: World, device: torch.device, images: ImageSet, max_batch: int, stop: StopRequest
) -> Loader:
    workers = cfg.max_workers if cfg.max_workers is not None else default_workers(world.local_size)
    backend = build_backend(cfg.data.backend, images.source, cfg.data, device, workers, max_batch, world.local_size)
    return Loader(backend, images.labels, device, cfg.data.on_bad_image == "skip", stop.look)


def _find_checkpoint(
    cfg: TrainConfig, run: RunDirectory, checkpoints: Checkpoints, train_set: ImageSet, world: World
) -> dict[str, Any] | None:
    """The checkpoint to go on from: the run's last, or the one that ``resume`` names.

    A checkpoint of this very run rewinds it, once: where it is gone, its run has gone on since. Another run's is a
    start for a run that has none of its own yet, and brings neither that run's best nor its W&B id.
    """
    named = Path(cfg.resume) if cfg.resume not in ("auto", "never") else None
    if named is not None and not run.has_checkpoints():
        state: dict[str, Any] | None = load_checkpoint(named) | {"wandb_id": None, "best": None}
    else:
        state = checkpoints.load_last()
        is_own = named is not None and named.is_file() and named.resolve().parent == run.checkpoints.resolve()
        # Where this very command wrote the last checkpoint, it has rewound already and went on since.
        if named is not None and is_own and state is not None and state["config"]["resume"] != cfg.resume:
            _rewind(named, checkpoints, world)
            state = checkpoints.load_last()
    if state is None:
        return None
    refuse_other_recipe(state["config"], cfg, "the checkpoint is of a run with another recipe")
    if what := differing(state["fingerprint"], train_set.index.fingerprint()):
        raise UserError(
            f"the training images are not those the run began with, by the {what}: restore them, or set another name=… "
            "to start anew"
        )
    return state


def _rewind(named: Path, checkpoints: Checkpoints, world: World) -> None:
    if not named.name.startswith("step_"):
        raise UserError(
            f"resume={named} cannot rewind its own run: name a step_*.pt, or set another name=… to start a run from it"
        )
    load_checkpoint(named)  # a damaged file must not cost the checkpoints after it
    world.barrier()  # every process has seen that the file is there
    if world.is_main:
        checkpoints.rewind(named)
    world.barrier()
