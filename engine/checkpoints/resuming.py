"""The checkpoint that a run continues from (``resume``)."""

import logging
from pathlib import Path
from typing import Any

from data import are_few_changed, differing
from engine.checkpoints.checkpoint import Checkpoints
from engine.checkpoints.checkpoint_file import load_checkpoint, resumable
from engine.errors import UserError
from engine.options.config import TrainConfig
from engine.options.recipe import refuse_other_recipe
from engine.processes.distributed import World
from engine.run_dir import RunDirectory

log = logging.getLogger(__name__)


def state_to_resume(
    cfg: TrainConfig, directory: RunDirectory, checkpoints: Checkpoints, fingerprint: str, world: World
) -> dict[str, Any] | None:
    """Return the checkpoint to continue from: the run's last one, or the one that ``resume`` names; None for a new run.

    If ``resume`` names a checkpoint of another run, it is used only while this run has no checkpoints of its own. The
    other run's best accuracy and callback states are not taken over, and its step is not validated again.

    If it names a checkpoint of this run, the run is rewound to it, once. When the same command runs again, it continues
    from the last checkpoint. A rewind renames the named file. So a missing file means that it is done.

    Args:
        cfg: the settings.
        directory: the directory of the run.
        checkpoints: its checkpoints.
        fingerprint: of the training images.
        world: the processes, all of which must call this.

    Raises:
        UserError: if the checkpoint cannot be read, or was made with another recipe or other training images.
    """
    state = _load(cfg.resume, directory, checkpoints, world)
    if state is None:
        return None
    refuse_other_recipe(state["config"], cfg, "the checkpoint belongs to a run with another recipe")
    if what := differing(state["fingerprint"], fingerprint):
        raise UserError(
            f"the training images have changed since the run began (other {what}): restore them, or set another name=… "
            "to start a new run"
        )
    if are_few_changed(state["fingerprint"], fingerprint):
        log.warning("a few training images have other file sizes than when the run began, as after a repair")
    return state


def _load(resume: str, directory: RunDirectory, checkpoints: Checkpoints, world: World) -> dict[str, Any] | None:
    if resume in ("auto", "never"):
        return checkpoints.load_last()
    named = Path(resume)
    if not directory.has_checkpoints():
        state = resumable(load_checkpoint(named), named)
        return state | {"callbacks": {}, "best": None, "validated": state["step"]}
    last = checkpoints.load_last()
    is_own = named.is_file() and named.resolve().parent == directory.checkpoints.resolve()
    # If the last checkpoint was written with the same value of resume, this command has already rewound the run.
    if not is_own or last is None or last["config"]["resume"] == resume:
        return last
    _rewind(named, checkpoints, world)
    return checkpoints.load_last()


def _rewind(named: Path, checkpoints: Checkpoints, world: World) -> None:
    if not named.name.startswith("step_"):
        raise UserError(
            f"resume={named} cannot rewind its own run: choose a step_*.pt, or set another name=… to start from it"
        )
    load_checkpoint(named)  # check that it can be read, because rewinding deletes the later checkpoints
    world.barrier()  # rewinding renames the file, so wait until every process has found it
    if world.is_main:
        checkpoints.rewind(named)
    world.barrier()
