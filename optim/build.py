"""Build the optimizer and the learning-rate schedule from the options."""

from collections.abc import Callable
from functools import partial
from typing import Any

from timm.optim import Lamb, Lion, Muon
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer, RAdam

from optim.adamw2 import AdamW2
from optim.config import OptimConfig, ScheduleConfig
from optim.errors import OptimError
from optim.fused import FusedAdamW, FusedSGD
from optim.groups import param_groups
from optim.schedules import Schedule
from optim.weight_cap import cap_weights

REFERENCE_BATCH = 512  # base_lr and base_min_lr are the learning rates at this batch size

Groups = list[dict[str, Any]]


def _betas(cfg: OptimConfig) -> tuple[float, float]:
    return cfg.betas[0], cfg.betas[1]


def _adamw(groups: Groups, lr: float, cfg: OptimConfig) -> Optimizer:
    return FusedAdamW(groups, lr=lr, betas=_betas(cfg), eps=cfg.eps)


def _adamw2(groups: Groups, lr: float, cfg: OptimConfig) -> Optimizer:
    return AdamW2(groups, lr, _betas(cfg), cfg.eps, tau=cfg.tau, power_iterations=cfg.power_iterations)


def _sgd(groups: Groups, lr: float, cfg: OptimConfig) -> Optimizer:
    return FusedSGD(groups, lr=lr, momentum=cfg.momentum, nesterov=cfg.momentum > 0)


def _lion(groups: Groups, lr: float, cfg: OptimConfig) -> Optimizer:
    return Lion(groups, lr=lr, betas=_betas(cfg))


def _lamb(groups: Groups, lr: float, cfg: OptimConfig) -> Optimizer:
    # The form of apex's FusedLAMB, with which DeiT III trained: the decay is a part of the update whose norm scales it.
    # No max_grad_norm here: optim.clip does the clipping.
    return Lamb(groups, lr=lr, betas=_betas(cfg), eps=cfg.eps, max_grad_norm=None)


def _radam(groups: Groups, lr: float, cfg: OptimConfig) -> Optimizer:
    return RAdam(groups, lr=lr, betas=_betas(cfg), eps=cfg.eps, decoupled_weight_decay=True, foreach=True)


def _muon(groups: Groups, lr: float, cfg: OptimConfig, algo: str = "muon", nesterov: bool = True) -> Optimizer:
    # Parameters that are not matrices take the step of AdamW, or with ``nesterov`` of NAdamW, at the same rate. This
    # works because timm scales Muon's step to the size of AdamW's.
    groups = [group | {"use_fallback": not group["cap"]} for group in groups]
    return Muon(groups, lr=lr, momentum=cfg.momentum, nesterov=nesterov, betas=_betas(cfg), algo=algo)


OPTIMIZERS: dict[str, Callable[[Groups, float, OptimConfig], Optimizer]] = {
    "adamw": _adamw,
    "adamw2": _adamw2,
    "sgd": _sgd,
    "lion": _lion,
    "lamb": _lamb,
    "radam": _radam,
    "muon": _muon,
    "adamuon": partial(_muon, algo="adamuon", nesterov=False),
    "nadamuon": partial(_muon, algo="adamuon"),
}


def peak_lr(cfg: OptimConfig, batch_size: int) -> float:
    """Return the schedule's peak learning rate: ``lr``, or ``base_lr`` scaled linearly with the global batch size."""
    return cfg.lr if cfg.lr is not None else cfg.base_lr * batch_size / REFERENCE_BATCH


def build_optimizer(cfg: OptimConfig, model: nn.Module, batch_size: int) -> Optimizer:
    """Build the optimizer ``cfg.name`` at its peak learning rate, with the groups of :func:`optim.param_groups`.

    Raises:
        OptimError: if the name is unknown, or the optimizer refuses its options.
    """
    if cfg.name not in OPTIMIZERS:
        raise OptimError(f"there is no optimizer '{cfg.name}': choose optim={', '.join(OPTIMIZERS)}")
    groups = param_groups(model, cfg.weight_decay, cfg.light_decay, cfg.layer_decay)
    try:
        optimizer = OPTIMIZERS[cfg.name](groups, peak_lr(cfg, batch_size), cfg)
    except ValueError as error:
        raise OptimError(f"optim={cfg.name}: {error}") from error
    if cfg.weight_cap is not None:
        cap_weights(optimizer, cfg.weight_cap)
    return optimizer


def refuse_rates_above_peak(cfg: ScheduleConfig, optim: OptimConfig, batch_size: int) -> None:
    """Raise if a learning rate is above the peak.

    Raises:
        OptimError: if the smallest rate or the start of the warm-up is above the peak.
    """
    peak, min_lr = peak_lr(optim, batch_size), _min_lr(optim, batch_size)
    if min_lr > peak and cfg.name != "constant":
        raise OptimError(
            f"the smallest learning rate, {min_lr:g}, is above the peak of {peak:g}, so the rate would rise: "
            f"add optim.min_lr={peak / 100:g}, or another value below the peak"
        )
    if cfg.warmup_epochs and cfg.warmup_lr > peak:
        raise OptimError(f"schedule.warmup_lr={cfg.warmup_lr:g} is above the peak of {peak:g}: set it lower")


def _min_lr(optim: OptimConfig, batch_size: int) -> float:
    return optim.min_lr if optim.min_lr is not None else optim.base_min_lr * batch_size / REFERENCE_BATCH


def build_schedule(
    cfg: ScheduleConfig, optim: OptimConfig, optimizer: Optimizer, batch_size: int, steps: int, steps_per_epoch: int
) -> Scheduler:
    """Build the schedule ``cfg.name`` over ``steps`` optimizer steps. A step's rate depends only on its number.

    Raises:
        OptimError: if the name is unknown, the parts are longer than the run, or the smallest rate or the start of the
            warm-up is above the peak.
    """
    refuse_rates_above_peak(cfg, optim, batch_size)
    return Schedule(cfg, optimizer, _min_lr(optim, batch_size), steps, steps_per_epoch)
