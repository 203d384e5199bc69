"""From the options to an optimizer and its schedule."""

from timm.scheduler import CosineLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import AdamW, Optimizer

from optim.config import OptimConfig, ScheduleConfig
from optim.errors import OptimError
from optim.groups import param_groups

REFERENCE_BATCH = 512  # batch size that base_lr is given for


def peak_lr(cfg: OptimConfig, batch_size: int) -> float:
    """The learning rate at the schedule's peak: ``lr``, or ``base_lr`` scaled linearly with the global batch."""
    return cfg.lr if cfg.lr is not None else cfg.base_lr * batch_size / REFERENCE_BATCH


def build_optimizer(cfg: OptimConfig, model: nn.Module, batch_size: int) -> Optimizer:
    """The optimizer that ``cfg`` names, at its peak learning rate.

    Raises:
        OptimError: if there is none of that name.
    """
    groups = param_groups(model, cfg.weight_decay, cfg.light_decay)
    lr = peak_lr(cfg, batch_size)
    if cfg.name == "adamw":
        betas = (cfg.betas[0], cfg.betas[1])
        return AdamW(groups, lr=lr, betas=betas, eps=cfg.eps, fused=True)
    raise OptimError(f"there is no optimizer '{cfg.name}': choose optim=adamw")


def build_schedule(
    cfg: ScheduleConfig, optim: OptimConfig, optimizer: Optimizer, batch_size: int, steps: int, steps_per_epoch: int
) -> Scheduler:
    """The schedule that ``cfg`` names, over ``steps`` optimizer steps; the rate of a step depends on its number only.

    Raises:
        OptimError: if there is none of that name, or the warm-up is longer than the run.
    """
    if cfg.name != "cosine":
        raise OptimError(f"there is no schedule '{cfg.name}': choose schedule=cosine")
    min_lr = optim.min_lr if optim.min_lr is not None else optim.base_min_lr * batch_size / REFERENCE_BATCH
    warmup = round(cfg.warmup_epochs * steps_per_epoch)
    cooldown = round(cfg.cooldown_epochs * steps_per_epoch)
    if warmup + cooldown >= steps:
        raise OptimError(
            f"schedule.warmup_epochs={cfg.warmup_epochs:g} and schedule.cooldown_epochs={cfg.cooldown_epochs:g} "
            f"are as long as the run: make them shorter"
        )
    return CosineLRScheduler(
        optimizer,
        t_initial=steps - warmup - cooldown,
        lr_min=min_lr,
        warmup_t=warmup,
        warmup_lr_init=cfg.warmup_lr,
        warmup_prefix=True,
        t_in_epochs=False,
    )
