"""The options of the optim room."""

from dataclasses import dataclass, field

from omegaconf import MISSING


@dataclass
class OptimConfig:
    """The optimizer (``optim.*``)."""

    name: str = MISSING
    lr: float | None = None  # peak at the global batch; null: base_lr * batch_size / 512
    base_lr: float = 5e-4
    base_min_lr: float = 5e-6
    min_lr: float | None = None  # end of the schedule; null: base_min_lr * batch_size / 512
    weight_decay: float = 0.05
    light_decay: float = 5e-4  # weight decay of biases, gains and position-bias tables
    clip: float | None = 5.0  # largest gradient norm; null: no clipping
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    eps: float = 1e-8


@dataclass
class ScheduleConfig:
    """The learning-rate schedule (``schedule.*``), counted in optimizer steps."""

    name: str = MISSING
    warmup_epochs: float = 0.0  # the point of this project
    warmup_lr: float = 0.0  # where a warm-up starts
    cooldown_epochs: float = 0.0  # at the end of the run, at its smallest rate
