"""The options of the optim room. ``metadata`` holds the rules of an option: its limits and its choices."""

from dataclasses import dataclass, field

from omegaconf import MISSING


@dataclass
class OptimConfig:
    """The optimizer (``optim.*``)."""

    name: str = MISSING  # adamw | adamw2 | sgd | lion | lamb | muon
    # Peak at the global batch; null: base_lr * batch_size / 512.
    lr: float | None = field(default=None, metadata={"above": 0})
    base_lr: float = field(default=5e-4, metadata={"above": 0})
    base_min_lr: float = field(default=5e-6, metadata={"least": 0})
    # End of the schedule; null: base_min_lr * batch_size / 512.
    min_lr: float | None = field(default=None, metadata={"least": 0})
    weight_decay: float = field(default=0.05, metadata={"least": 0})
    light_decay: float = field(default=5e-4, metadata={"least": 0})  # of biases, gains and position-bias tables
    clip: float | None = field(default=5.0, metadata={"above": 0})  # of the gradient, before the step; null: none
    # norm: of all gradients; value: of each entry; agc: against each row's weight
    clip_mode: str = field(default="norm", metadata={"choices": ("norm", "value", "agc")})
    # All but sgd. At 1 no new gradient would enter.
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98], metadata={"length": 2, "least": 0, "below": 1})
    eps: float = field(default=1e-8, metadata={"above": 0})  # all but sgd and lion
    momentum: float = field(default=0.9, metadata={"least": 0, "below": 1})  # sgd, muon
    # adamw2: most that a step may grow a matrix's largest singular value, relatively
    tau: float = field(default=0.03, metadata={"above": 0, "infinite": True})
    power_iterations: int = field(default=1, metadata={"above": 0})  # adamw2: for these values, in each step


@dataclass
class ScheduleConfig:
    """The learning-rate schedule (``schedule.*``), counted in optimizer steps."""

    name: str = MISSING  # cosine | linear | step | constant | trapezoid | inverse_sqrt
    warmup_epochs: float = field(default=0.0, metadata={"least": 0})  # none: the point of this project
    warmup_lr: float = field(default=0.0, metadata={"least": 0})  # where a warm-up starts
    warmup_prefix: bool = True  # the schedule starts after the warm-up; false: with it, as in older versions of timm
    t_in_epochs: bool = False  # the rate changes at the start of each epoch, and not at each step
    lag_epochs: float = field(
        default=0.0, metadata={"least": 0}
    )  # by which the rate is late, as in DeiT's released code
    cooldown_epochs: float = field(default=0.0, metadata={"least": 0})  # at the end of the run, at its smallest rate
    # trapezoid: the descent at the end; null: a fifth of the run
    decay_epochs: float | None = field(default=None, metadata={"least": 0})
    step_epochs: float = field(default=30.0, metadata={"above": 0})  # step: between two drops
    step_factor: float = field(default=0.1, metadata={"above": 0})  # step: of the rate at a drop
    timescale_epochs: float = field(default=10.0, metadata={"above": 0})  # inverse_sqrt: until it has fallen to 1/√2
