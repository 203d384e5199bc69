"""The options of the optim room."""

from dataclasses import dataclass, field

from omegaconf import MISSING


@dataclass
class OptimConfig:
    """The optimizer (``optim.*``)."""

    name: str = MISSING  # adamw | adamw2 | sgd | lion | lamb | muon
    lr: float | None = None  # peak at the global batch; null: base_lr * batch_size / 512
    base_lr: float = 5e-4
    base_min_lr: float = 5e-6
    min_lr: float | None = None  # end of the schedule; null: base_min_lr * batch_size / 512
    weight_decay: float = 0.05
    light_decay: float = 5e-4  # weight decay of biases, gains and position-bias tables
    clip: float | None = 5.0  # of the gradient, before the step; null: no clipping
    clip_mode: str = "norm"  # norm: of all gradients | value: of each entry | agc: against each row's weight
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])  # all but sgd
    eps: float = 1e-8  # all but sgd and lion
    momentum: float = 0.9  # sgd, muon
    tau: float = 0.03  # adamw2: most that a step may grow a matrix's largest singular value, relatively
    power_iterations: int = 1  # adamw2: for these values, in each step


@dataclass
class ScheduleConfig:
    """The learning-rate schedule (``schedule.*``), counted in optimizer steps."""

    name: str = MISSING  # cosine | linear | step | constant | trapezoid | inverse_sqrt
    warmup_epochs: float = 0.0  # the point of this project
    warmup_lr: float = 0.0  # where a warm-up starts
    warmup_prefix: bool = True  # the schedule starts after the warm-up; false: with it, as in older versions of timm
    t_in_epochs: bool = False  # the rate changes at the start of each epoch, and not at each step
    lag_epochs: float = 0.0  # by which the rate is late, as in DeiT's released code
    cooldown_epochs: float = 0.0  # at the end of the run, at its smallest rate
    decay_epochs: float | None = None  # trapezoid: the descent at the end; null: a fifth of the run
    step_epochs: float = 30.0  # step: between two drops
    step_factor: float = 0.1  # step: of the rate at a drop
    timescale_epochs: float = 10.0  # inverse_sqrt: until the rate has fallen to 1/√2
