"""torch's fused AdamW and SGD, corrected for any memory layout and for parameters that get their first gradient late.

torch's fused kernels ignore strides and read memory in order. If the gradient has other strides than the weight, they
combine numbers that do not belong together. On a GPU torch raises an error then; on a CPU the result is wrong.
"""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor


class _AnyLayout:
    """Gives gradients and states the strides of their parameters before the kernel runs.

    The kernel cannot read a parameter with gaps in memory, such as every second row of a table. The group of such a
    parameter does not use the fused kernel.
    """

    state: defaultdict[Tensor, Any]
    param_groups: list[dict[str, Any]]

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether ``step`` unscales gradients itself. torch's gradient scaler reads this; only fused kernels do it."""
        return all(group["fused"] and all(map(_is_dense, group["params"])) for group in self.param_groups)

    @_step_supports_amp_scaling.setter
    def _step_supports_amp_scaling(self, _: bool) -> None:
        """Ignore the value: torch's constructors set a constant."""

    def _init_group(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], *states: Any) -> bool:
        """Fill the lists that the step of a group needs, as torch does, with equal strides."""
        members = [parameter for parameter in group["params"] if parameter.grad is not None]
        group["fused"] = group["fused"] and all(map(_is_dense, members))
        for parameter in members:
            kept = self.state.get(parameter, {})
            for name, value in kept.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    kept[name] = _laid_out_as(parameter, value)
        found: bool = super()._init_group(group, params, grads, *states)  # type: ignore[misc]
        if not found:  # neither complex nor sparse
            grads[:] = [_laid_out_as(p, grad) for p, grad in zip(params, grads, strict=True)]
        return found


class FusedAdamW(_AnyLayout, torch.optim.AdamW):
    """torch's AdamW, fused for all groups without gaps in memory."""

    def __init__(self, params: Any, lr: float | Tensor = 1e-3, **options: Any):
        super().__init__(params, lr, **options, fused=True)


class FusedSGD(_AnyLayout, torch.optim.SGD):
    """torch's SGD without dampening, fused for all groups without gaps in memory.

    torch creates all momentum buffers of a group together in the first step, without initialising them. This fails if
    one parameter gets its first gradient later than another. If a gradient scaler skips the first step, the buffers
    keep random memory content. Here the buffers start at zero. Without dampening this gives the same step.
    """

    def __init__(self, params: Any, lr: float | Tensor = 1e-3, **options: Any):
        super().__init__(params, lr, **options, dampening=0, fused=True)

    def _init_group(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], *states: Any) -> bool:
        for parameter in group["params"]:
            if group["momentum"] and parameter.grad is not None:
                kept = self.state[parameter]
                if kept.get("momentum_buffer") is None:
                    kept["momentum_buffer"] = torch.zeros_like(parameter)
        return super()._init_group(group, params, grads, *states)


def _strides(tensor: Tensor) -> list[int]:
    """Return the strides of dimensions with more than one entry. Other strides have no effect."""
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


def _is_dense(parameter: Tensor) -> bool:
    """Whether the parameter fills a block of memory without gaps, in any order of its dimensions."""
    return parameter.is_contiguous() or _strides(torch.empty_like(parameter, device="meta")) == _strides(parameter)


def _laid_out_as(parameter: Tensor, tensor: Tensor) -> Tensor:
    if tensor.is_sparse or tensor.stride() == parameter.stride() or _strides(tensor) == _strides(parameter):
        return tensor
    return torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
