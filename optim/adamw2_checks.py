"""Refuse options and states that AdamW² cannot take."""

from typing import Any

from torch import Tensor
from torch.optim import Optimizer


def check(options: dict[str, Any]) -> None:
    """Check the options of a group or the defaults.

    Raises:
        ValueError: if an option or a parameter is not valid.
    """
    lr, betas, splits = options["lr"], options["betas"], options["splits"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError("lr as a tensor must be a single number")
    for name in ("lr", "eps", "weight_decay"):
        if not isinstance(options[name], Tensor) and not options[name] >= 0:
            raise ValueError(f"{name}={options[name]} must be 0 or more")
    if any(isinstance(beta, Tensor) for beta in betas) or len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas={betas} must be two numbers of at least 0 and less than 1")
    if not options["tau"] > 0:
        raise ValueError(f"tau={options['tau']} must be more than 0")
    for name in ("power_iterations", "splits"):
        if not isinstance(options[name], int) or options[name] < 1:
            raise ValueError(f"{name}={options[name]} must be a whole number of 1 or more")
    for parameter in options.get("params", []):
        if parameter.is_complex():
            raise ValueError("AdamW2 does not support complex parameters")
        if options["cap"] and parameter.ndim >= 2 and len(parameter) % splits:
            raise ValueError(f"splits={splits} does not divide the {len(parameter)} rows of a matrix")


def refuse_other_state(_: Optimizer, state_dict: dict[str, Any]) -> None:
    """Refuse the state of another optimizer.

    Raises:
        ValueError: if it lacks AdamW²'s options.
    """
    if not all({"tau", "cap", "splits"} <= group.keys() for group in state_dict["param_groups"]):
        raise ValueError("the state belongs to another optimizer: AdamW2 also needs singular vectors")
