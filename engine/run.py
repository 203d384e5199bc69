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
    """The objects that the training loop uses and that callbacks may read.

    Attributes:
        cfg: the settings.
        runtime: processes, device and precision.
        directory: the directory of the run's files.
        data: the images.
        step: takes the optimizer steps; holds the model and the optimizer.
        checkpoints: saves the states.
    """

    cfg: TrainConfig
    runtime: Runtime
    directory: RunDirectory
    data: TrainingData
    step: TrainStep
    checkpoints: Checkpoints

    @property
    def length(self) -> RunLength:
        """The length of the run in steps and epochs."""
        return RunLength.of(self.cfg, self.data.plan)
