"""Learning-rate schedules that depend only on the step's number, so a resumed run needs no schedule state."""

import math

from timm.scheduler.scheduler import Scheduler
from torch.optim import Optimizer

from optim.config import ScheduleConfig
from optim.errors import OptimError

SCHEDULES = ("cosine", "linear", "step", "constant", "trapezoid", "inverse_sqrt")


class Schedule(Scheduler):
    """An optional warm-up, the shape of the schedule, and an optional cooldown at the smallest rate.

    The shape starts after the warm-up. With ``warmup_prefix=False`` it starts together with the warm-up: the warm-up
    replaces the first part of the shape. If the shape falls from the start, the rate then stays below the peak.

    Args:
        cfg: the name of the schedule, and its lengths in epochs.
        optimizer: the optimizer, at its peak learning rate.
        low: the smallest learning rate.
        steps: optimizer steps of the whole run.
        steps_per_epoch: optimizer steps in an epoch.

    Raises:
        OptimError: if the name is unknown, or the parts are longer than the run.
    """

    def __init__(self, cfg: ScheduleConfig, optimizer: Optimizer, low: float, steps: int, steps_per_epoch: int):
        if cfg.name not in SCHEDULES:
            raise OptimError(f"there is no schedule '{cfg.name}': choose schedule={', '.join(SCHEDULES)}")
        # Here timm's own t_in_epochs: the rate is set at each step. ``rate`` follows the option of this name.
        super().__init__(optimizer, param_group_field="lr", t_in_epochs=False)
        self.cfg, self.low, self.per_epoch = cfg, low, steps_per_epoch
        self.warmup = round(cfg.warmup_epochs * steps_per_epoch)
        self.lag = round(cfg.lag_epochs * steps_per_epoch)
        self.start = self.warmup if cfg.warmup_prefix else 0
        cooldown = round(cfg.cooldown_epochs * steps_per_epoch)
        self.length = steps - self.start - cooldown
        if steps - self.warmup - cooldown <= 0:
            raise OptimError(
                f"schedule.warmup_epochs={cfg.warmup_epochs:g} and schedule.cooldown_epochs={cfg.cooldown_epochs:g} "
                f"are as long as the run or longer: make them shorter"
            )
        wanted = cfg.decay_epochs
        self.decay = round(wanted * steps_per_epoch) if wanted is not None else max(self.length // 5, 1)
        if cfg.name == "trapezoid" and self.decay > self.length:
            raise OptimError(
                f"schedule.decay_epochs={wanted:g} is longer than the run without warm-up and cool-down: shorten it"
            )

    def _get_lr(self, t: int) -> list[float]:
        return [self.rate(t, peak) for peak in self.base_values]

    def rate(self, step: int, peak: float) -> float:
        """Return the learning rate of a step, counted from 0, for a parameter group with this peak rate."""
        step = max(step - self.lag, 0)
        if self.cfg.t_in_epochs:
            step -= step % self.per_epoch
        if step < self.warmup:
            return self.cfg.warmup_lr + (peak - self.cfg.warmup_lr) * step / self.warmup
        t = step - self.start
        if t >= self.length and self.cfg.name != "constant":
            return self.low
        match self.cfg.name:
            case "cosine":
                fraction = 0.5 * (1 + math.cos(math.pi * t / self.length))
            case "constant":
                return peak
            case "step":
                drops = t / self.per_epoch // self.cfg.step_epochs
                return max(self.low, peak * self.cfg.step_factor**drops)
            case "inverse_sqrt":  # Xiong et al., section 3.2, shifted so that it starts at its peak
                scale = max(self.cfg.timescale_epochs * self.per_epoch, 1.0)
                return max(self.low, peak * math.sqrt(scale / (scale + t)))
            case "trapezoid":  # warm-up, stable, decay
                fraction = min(1.0, (self.length - t) / self.decay) if self.decay else 1.0
            case _:
                fraction = 1 - t / self.length
        return self.low + (peak - self.low) * fraction
