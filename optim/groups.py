"""Which parameters decay how much."""

from typing import Any

from torch import nn


def param_groups(model: nn.Module, weight_decay: float, light_decay: float) -> list[dict[str, Any]]:
    """Split a model's parameters into weights and the rest, as the LipsFormer recipe does.

    Biases, vectors (gains, residual scales) and what the model's ``no_weight_decay()`` names (position-bias tables,
    tokens) get ``light_decay``; every other weight gets ``weight_decay``. Frozen parameters are left out.
    """
    exempt = getattr(model, "no_weight_decay", set)  # timm's convention
    named = set(exempt())
    weights: list[nn.Parameter] = []
    light: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_light = parameter.ndim <= 1 or name.endswith(".bias") or name in named
            (light if is_light else weights).append(parameter)
    groups = [
        {"params": weights, "weight_decay": weight_decay},
        {"params": light, "weight_decay": light_decay},
    ]
    return [group for group in groups if group["params"]]
