"""How long a run is, in steps and epochs."""

from dataclasses import dataclass

from data import TrainPlan
from engine.config import TrainConfig


@dataclass(frozen=True)
class RunLength:
    """Counts steps and epochs of a run; optimizer steps count from 1, and 0 is before the first.

    Attributes:
        epochs: of the whole run.
        steps_per_epoch: optimizer steps.
        stop_at: the step after which the run ends.
    """

    epochs: int
    steps_per_epoch: int
    stop_at: int

    @classmethod
    def of(cls, cfg: TrainConfig, plan: TrainPlan) -> "RunLength":
        """As the settings say: ``max_steps`` ends a run early."""
        total = cfg.epochs * plan.steps_per_epoch
        return cls(cfg.epochs, plan.steps_per_epoch, min(total, cfg.max_steps or total))

    def epoch_of(self, step: int) -> int:
        """The epoch that a step is in, counted from 1."""
        return -(-step // self.steps_per_epoch)

    def ends_epoch(self, step: int) -> bool:
        """Whether a step is the last of an epoch."""
        return step % self.steps_per_epoch == 0

    def place(self, step: int) -> dict[str, float]:
        """Step and epoch for a line of metrics; the epoch with its part that is done."""
        return {"step": step, "epoch": round(step / self.steps_per_epoch, 4)}
