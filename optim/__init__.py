"""Optimizers, learning-rate schedules and parameter groups, which work with any torch training loop."""

from optim.adamw2 import AdamW2
from optim.build import build_optimizer, build_schedule, peak_lr, refuse_rates_above_peak
from optim.config import OptimConfig, ScheduleConfig
from optim.errors import OptimError
from optim.graphed import GraphedStep
from optim.groups import param_groups
from optim.schedules import SCHEDULES
from optim.spectral_norms import SpectralNorms

__all__ = [
    "SCHEDULES",
    "AdamW2",
    "GraphedStep",
    "OptimConfig",
    "OptimError",
    "ScheduleConfig",
    "SpectralNorms",
    "build_optimizer",
    "build_schedule",
    "param_groups",
    "peak_lr",
    "refuse_rates_above_peak",
]
