"""The parts of a training run, and its length."""

from dataclasses import dataclass

from engine.checkpoints.checkpoint import Checkpoints
from engine.options.config import TrainConfig
from engine.run_dir import RunDirectory
from engine.runtime import Runtime
from engine.step import TrainStep
from engine.training_data import TrainingData


@dataclass(frozen=True)
class RunLength:
    """The steps and epochs of a run. Optimizer steps count from 1; step 0 means that no step is done.

    Attributes:
        epochs: epochs of the whole run.
        steps_per_epoch: optimizer steps in an epoch.
        stop_at: the step after which the run ends.
    """

    epochs: int
    steps_per_epoch: int
    stop_at: int

    def epoch_of(self, step: int) -> int:
        """Return the epoch that a step belongs to, counted from 1."""
        return -(-step // self.steps_per_epoch)

    def ends_epoch(self, step: int, every: int = 1) -> bool:
        """Whether a step is the last of an epoch whose number is a multiple of ``every``."""
        return step % (every * self.steps_per_epoch) == 0

    def place(self, step: int) -> dict[str, float]:
        """Return step and epoch for a line of metrics. The epoch is fractional: 2.5 means two and a half epochs."""
        return {"step": step, "epoch": round(step / self.steps_per_epoch, 4)}


@dataclass(frozen=True)
class Run:
    """The objects that the training loop uses and that callbacks may read.

    Attributes:
        cfg: the settings.
        runtime: processes, device and precision.
        directory: the directory of the run's files.
        data: the images.
        step: takes the optimizer steps; holds the model and the optimizer.
        checkpoints: saves the states.
        first: number of steps done before this start; 0 for a new run.
    """

    cfg: TrainConfig
    runtime: Runtime
    directory: RunDirectory
    data: TrainingData
    step: TrainStep
    checkpoints: Checkpoints
    first: int

    @property
    def length(self) -> RunLength:
        """The length of the run in steps and epochs. ``max_steps`` may end it early."""
        epochs, steps_per_epoch = self.cfg.epochs, self.data.plan.steps_per_epoch
        total = epochs * steps_per_epoch
        return RunLength(epochs, steps_per_epoch, min(total, self.cfg.max_steps or total))
