"""A training run: check the settings, build the parts, train, and log the results."""

import logging
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from data import resolve_backend
from engine.batch_norm import has_batch_norm, refuse_lone_images, wants_sync_bn
from engine.callbacks import build_callbacks, refuse_unusable
from engine.checkpoints.checkpoint import Checkpoints
from engine.checkpoints.resuming import state_to_resume
from engine.checkpoints.starting_weights import StartingWeights
from engine.device import device_name
from engine.errors import UserError
from engine.log import log_to
from engine.loop import TrainLoop
from engine.measuring.flops import seconds_at_peak
from engine.measuring.memory import fitting_micro_batch
from engine.options.config import TrainConfig
from engine.options.timm_registration import other_normalisation
from engine.processes.signals import StopRequest
from engine.run import Run
from engine.run_dir import RunDirectory
from engine.runtime import Runtime
from engine.step import TrainStep
from engine.summary import conclude, describe
from engine.training_data import TrainingData
from models import build_model, refuse_unknown
from optim import build_optimizer, build_schedule, refuse_rates_above_peak

log = logging.getLogger(__name__)


def train(cfg: TrainConfig) -> None:
    """Train, validate and save. If the run already has checkpoints, continue from the last one.

    As many mistakes as possible are found before the processes join a group and before the run's files are written.

    Raises:
        UserError: or another of ``engine.errors.USER_ERRORS``, mostly before training, if the settings do not work.
        RunStopped: if the run ended early.
    """
    refuse_unknown(cfg.model.name)
    refuse_unusable(cfg.callbacks)
    refuse_rates_above_peak(cfg.schedule, cfg.optim, cfg.batch_size)
    runtime = Runtime.start(cfg)
    directory = RunDirectory(str(cfg.output_dir))
    directory.refuse_conflict(cfg)
    start = _starting_weights(cfg, directory)  # before the images, so that a mistake is found early
    cfg.data.backend = directory.backend_of(cfg) or resolve_backend(cfg.data)
    data = TrainingData(cfg, runtime)
    torch.manual_seed(cfg.seed)
    model = build_model(cfg.model, data.num_classes, cfg.data.crop)
    notices: list[str] = []
    if start is not None:
        notices += start.load_into(model, data.classes)
        if start.classes is None:  # our checkpoints may have been trained in any way
            notices += other_normalisation(cfg.model.name, cfg.data)
    del start  # free the memory: the model has its own copy
    directory.refuse_unwritable()
    log_to(directory.log, runtime.world.is_main)
    for notice in notices:
        log.info("%s", notice)
    joined = runtime.world.joined(runtime.device, directory.path)
    with directory.locked() if runtime.world.is_main else nullcontext(), joined:
        _fit(cfg, runtime, directory, data, model)


def _starting_weights(cfg: TrainConfig, directory: RunDirectory) -> StartingWeights | None:
    """Read the weights that the run starts from; None for random ones, and for a run that resumes: it has its own."""
    is_new = not directory.has_checkpoints() and cfg.resume in ("auto", "never")
    return StartingWeights.read(cfg.checkpoint.start) if is_new and cfg.checkpoint.start is not None else None


def _fit(cfg: TrainConfig, runtime: Runtime, directory: RunDirectory, data: TrainingData, model: nn.Module) -> None:
    """Build the other parts of the run, load its state if there is one, and train."""
    checkpoints = Checkpoints(directory.checkpoints, cfg.checkpoint.keep)
    state = state_to_resume(cfg, directory, checkpoints, data.fingerprint(), runtime.world)
    seconds_per_image = seconds_at_peak(model, cfg.data.crop, runtime.device, cfg.amp)
    # BatchNorm's statistics cover a micro-batch, so there its size must not depend on the memory of the GPU.
    if cfg.micro_batch_size == "auto" and runtime.device.type == "cuda" and not has_batch_norm(model):
        data.set_micro_batch_size(fitting_micro_batch(cfg, runtime, model))
    first = state["step"] if state is not None else 0
    run = Run(cfg, runtime, directory, data, _new_step(cfg, runtime, data, model), checkpoints, first)
    stop = StopRequest()
    data.start(stop)
    callbacks = build_callbacks(run, _callback_states(cfg, state))
    loop = TrainLoop(run, callbacks, stop, seconds_per_image)
    if state is not None:
        loop.load(state)
        _say_that_it_continues(run, state["config"]["epochs"])
        del state  # free the memory: the model and the optimizer have their own copies
    _refuse_different_starts(run)
    if runtime.world.is_main:
        directory.begin(cfg, first, loop.validated)
    if first == 0:
        describe(run)
    if first >= run.length.stop_at:
        log.info("the run has already ended at step %d: set epochs or max_steps higher to train longer", first)
    scores = loop.fit()
    if runtime.world.is_main:
        conclude(directory, scores, loop.best)


def _say_that_it_continues(run: Run, epochs_before: int) -> None:
    world, epochs = run.runtime.world, run.cfg.epochs
    where = (world.size, device_name(run.runtime.device))
    log.info("continuing from step %d of %s, on %d × %s", run.first, run.directory.path, *where)
    if epochs_before != epochs:
        log.info("epochs %d → %d: from here the learning rate is that of %d epochs", epochs_before, epochs, epochs)


def _new_step(cfg: TrainConfig, runtime: Runtime, data: TrainingData, model: nn.Module) -> TrainStep:
    """Move the model to its device, and build the optimizer and schedule around it."""
    if wants_sync_bn(cfg.sync_bn, model, runtime.world, runtime.device):
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    else:
        refuse_lone_images(model, data.geometry, cfg.data.crop)
    model = model.to(runtime.device)
    per_epoch = data.plan.steps_per_epoch
    optimizer = build_optimizer(cfg.optim, model, cfg.batch_size)
    schedule = build_schedule(cfg.schedule, cfg.optim, optimizer, cfg.batch_size, cfg.epochs * per_epoch, per_epoch)
    return TrainStep(cfg, runtime, model, optimizer, schedule, data.geometry.micro_steps)


def _callback_states(cfg: TrainConfig, state: dict[str, Any] | None) -> dict[str, Any]:
    """Return the saved states of callbacks, such as the id of the W&B run to continue.

    They are ignored if the name differs: a copy of a run's directory under another name is a different run.
    """
    return state["callbacks"] if state is not None and state["config"]["name"] == cfg.name else {}


def _refuse_different_starts(run: Run) -> None:
    """Refuse to start if the processes have loaded different checkpoints or different weights.

    Raises:
        UserError: if they have.
    """
    start = torch.tensor([run.first, checksum(run.step.parameters)], device=run.runtime.device)
    starts = run.runtime.world.all_gather(start)
    if (starts != starts[0]).any():
        raise UserError(
            f"the processes would continue from different steps: output_dir={run.directory.path} must be on storage "
            "that all machines share"
        )


def checksum(weights: Iterable[Tensor]) -> int:
    """Return a number that is the same for equal weights on every kind of device, and hardly ever for other weights.

    It adds up the bits of the weights as integers: a sum of fractions depends on its order, which differs between GPUs
    and between numbers of threads.
    """
    return int(sum(w.detach().float().flatten().view(torch.int32).sum(dtype=torch.int64) for w in weights))
