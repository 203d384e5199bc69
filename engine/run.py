"""The parts of a training run."""

from dataclasses import dataclass

from engine.checkpoint import Checkpoints
from engine.config import TrainConfig
from engine.run_dir import RunDirectory
from engine.run_length import RunLength
from engine.runtime import Runtime
from engine.step import TrainStep
from engine.training_data import TrainingData


@dataclass(frozen=True)
class Run:
    """What the loop works with, and what callbacks may look at.

    Attributes:
        cfg: the settings.
        runtime: processes, device, precision.
        directory: where the run's files lie.
        data: its images.
        step: takes the optimizer steps; holds model and optimizer.
        checkpoints: take its states.
    """

    cfg: TrainConfig
    runtime: Runtime
    directory: RunDirectory
    data: TrainingData
    step: TrainStep
    checkpoints: Checkpoints

    @property
    def length(self) -> RunLength:
        """In steps and epochs."""
        return RunLength.of(self.cfg, self.data.plan)
