"""The options of optimizers and schedules. The ``metadata`` of a field holds its limits and choices."""

from dataclasses import dataclass, field

from omegaconf import MISSING


@dataclass
class OptimConfig:
    """The optimizer (``optim.*``)."""

    name: str = MISSING  # one of OPTIMIZERS in optim/build.py
    # Peak learning rate; null: base_lr * batch_size / 512.
    lr: float | None = field(default=None, metadata={"above": 0})
    base_lr: float = field(default=5e-4, metadata={"above": 0})
    base_min_lr: float = field(default=5e-6, metadata={"least": 0})
    # Learning rate at the end of the schedule; null: base_min_lr * batch_size / 512.
    min_lr: float | None = field(default=None, metadata={"least": 0})
    weight_decay: float = field(default=0.05, metadata={"least": 0})
    light_decay: float = field(default=5e-4, metadata={"least": 0})  # for biases, gains and position-bias tables
    # Factor of the learning rate from each layer to the one before it, for fine-tuning; null: the same rate everywhere.
    layer_decay: float | None = field(default=None, metadata={"above": 0, "most": 1})
    clip: float | None = field(default=5.0, metadata={"above": 0})  # limit of the gradient; null: no clipping
    # norm: norm of all gradients; value: each entry; agc: norm of each row relative to the norm of its weights
    clip_mode: str = field(default="norm", metadata={"choices": ("norm", "value", "agc")})
    # All optimizers except sgd. At 1 the averages would never change.
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98], metadata={"length": 2, "least": 0, "below": 1})
    eps: float = field(default=1e-8, metadata={"above": 0})  # adamw, adamw2, radam, lamb
    momentum: float = field(default=0.9, metadata={"least": 0, "below": 1})  # sgd, muon, adamuon, nadamuon
    # adamw2: largest relative growth of a matrix's largest singular value in a step
    tau: float = field(default=0.03, metadata={"above": 0, "infinite": True})
    # Largest singular value of a weight matrix after each step; null: no limit. For any optimizer.
    weight_cap: float | None = field(default=None, metadata={"above": 0})
    power_iterations: int = field(default=1, metadata={"above": 0})  # adamw2: power iterations in each step


@dataclass
class ScheduleConfig:
    """The learning-rate schedule (``schedule.*``), counted in optimizer steps."""

    name: str = MISSING  # one of SCHEDULES in optim/schedules.py
    warmup_epochs: float = field(default=0.0, metadata={"least": 0})  # 0: no warm-up, the point of this project
    warmup_lr: float = field(default=0.0, metadata={"least": 0})  # learning rate at the start of the warm-up
    warmup_prefix: bool = True  # true: the schedule starts after the warm-up; false: together, as in older timm
    t_in_epochs: bool = False  # true: the rate changes once per epoch; false: at each step
    # Delay of the whole schedule, as in DeiT's released code.
    lag_epochs: float = field(default=0.0, metadata={"least": 0})
    cooldown_epochs: float = field(default=0.0, metadata={"least": 0})  # epochs at the smallest rate, at the end
    # trapezoid: length of the decay at the end; null: a fifth of the schedule
    decay_epochs: float | None = field(default=None, metadata={"least": 0})
    step_epochs: float = field(default=30.0, metadata={"above": 0})  # step: epochs between two drops
    step_factor: float = field(default=0.1, metadata={"above": 0})  # step: factor of the rate at a drop
    timescale_epochs: float = field(default=10.0, metadata={"above": 0})  # inverse_sqrt: epochs until 1/√2 of the peak
