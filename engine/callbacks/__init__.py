"""Callbacks watch a run: metrics files, loggers, pictures, instruments. Each has its own file. This one builds them."""

import importlib
import inspect
import logging
from collections.abc import Callable
from typing import Any

from engine.callbacks.callback import Callback, Callbacks
from engine.callbacks.data_wait import DataWait
from engine.callbacks.flight_recorder import FlightRecorder
from engine.callbacks.instruments import Instruments, is_due
from engine.callbacks.metrics_file import MetricsFile
from engine.callbacks.on_track import OnTrack
from engine.callbacks.pictures import Pictures
from engine.callbacks.profiler import LAST_TRACED, StepProfiler
from engine.callbacks.progress import Progress
from engine.errors import UserError, reason
from engine.log import log_from
from engine.options.config import TrainConfig
from engine.run import Run
from engine.similar import nearest
from optim import SpectralNorms
from stability import StabilityMonitor

__all__ = ["Callback", "Callbacks", "build_callbacks", "is_long_work_due", "refuse_unusable"]

log = logging.getLogger(__name__)


def _instruments(run: Run, callbacks: Callbacks) -> Instruments:
    """Build the instruments, and let the training step run each update in their context."""
    monitor = StabilityMonitor(
        run.step.model,
        spectral_norms=SpectralNorms(run.step.optimizer),
        precision=run.runtime.autocast,
        most_images=run.cfg.monitor.images,
    )
    instruments = Instruments(monitor, run.cfg.monitor.every, run.directory, run.length, callbacks)
    run.step.watch_update = instruments.watch_update
    return instruments


# What builds the callbacks of every run, in the order in which they are called; None: a run does not need it.
OF_EVERY_RUN: dict[str, Callable[[Run, Callbacks], Callback | None]] = {
    "flight_recorder": lambda run, _: FlightRecorder(run),
    "metrics": lambda run, _: MetricsFile(run.directory.metrics),
    "progress": lambda run, _: Progress(run.length, run.first),
    "on_track": lambda run, _: OnTrack.of(run),
    "data_wait": lambda run, _: DataWait(run.cfg, run.runtime),
    "pictures": Pictures,
    "instruments": _instruments,
    "profiler": lambda run, _: StepProfiler(run.directory.path) if run.cfg.profile else None,
}


def build_callbacks(run: Run, states: dict[str, Any]) -> Callbacks:
    """Build the callbacks of a run, in the order in which they are called.

    Only the first process has callbacks.

    Args:
        run: the parts of the run.
        states: the states of the callbacks, from the checkpoint.
    """
    callbacks = Callbacks(states)
    if not run.runtime.world.is_main:
        return callbacks
    for name, build in OF_EVERY_RUN.items():
        if (callback := build(run, callbacks)) is not None:
            callbacks.add(name, callback)
    for name, path in run.cfg.callbacks.items():
        _add_chosen(callbacks, name, path, run)
    return callbacks


def is_long_work_due(cfg: TrainConfig, step: int, first: int) -> bool:
    """Whether the first process has long work at a step (instruments, a trace), for which the others must wait.

    Args:
        cfg: the settings.
        step: number of the step.
        first: number of steps done before this start.
    """
    return is_due(cfg.monitor.every, step) or (cfg.profile and step - first == LAST_TRACED)


def _add_chosen(callbacks: Callbacks, name: str, path: str, run: Run) -> None:
    """Add a callback from the settings. If it cannot start, a warning says so and the run continues without it."""
    log_from(path.partition(".")[0])
    try:
        callbacks.add(name, _class_of(path)(run, callbacks.states.get(name)))
    except Exception as error:  # whatever it is, it must not end a training run
        log.warning("%s cannot start (%s): continuing without it; metrics.jsonl holds everything", name, reason(error))


def refuse_unusable(chosen: dict[str, str]) -> None:
    """Refuse what cannot be imported, what is no callback, and what would take the place of a callback of every run.

    Raises:
        UserError: naming the first of them.
    """
    for name, path in chosen.items():
        if name in OF_EVERY_RUN:
            raise UserError(f"callbacks.{name}: every run has a callback of this name, choose another name")
        _class_of(path)


def _class_of(path: str) -> Callable[[Run, dict[str, Any] | None], Callback]:
    """Import the class ``package.module.Class``. Its constructor gets the :class:`Run` and the callback's saved state.

    Raises:
        UserError: if it cannot be imported, or is no callback.
    """
    place, _, name = path.rpartition(".")
    try:
        module = importlib.import_module(place)
    except (ImportError, ValueError) as error:
        raise UserError(f"callbacks: {path} cannot be imported ({error}): write it as package.module.Class") from error
    found = getattr(module, name, None)
    if isinstance(found, type) and issubclass(found, Callback):
        _refuse_other_constructor(path, found)
        return found
    known = [key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, Callback)]
    hint = nearest(name, [key for key in known if key != "Callback"]) if known else "there is none in this module"
    raise UserError(f"callbacks: {path} is no subclass of engine.callbacks.Callback: {hint}")


def _refuse_other_constructor(path: str, kind: type[Callback]) -> None:
    try:
        inspect.signature(kind).bind("run", "state")
    except TypeError as error:
        raise UserError(
            f"callbacks: the constructor of {path} must take two arguments, __init__(self, run, state): {error}"
        ) from error
