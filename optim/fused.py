"""torch's fused AdamW and SGD, for tensors in every memory layout and gradients that come late.

The kernels read memory from its start to its end: they take the third number of the gradient for that of the third
number of the weight, wherever either lies by its strides. On a GPU torch refuses tensors that do not agree; on a CPU it
computes something else.
"""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor


class _AnyLayout:
    """Lets gradients and states lie in memory as their parameters do before the kernel sees them.

    A parameter with gaps, such as every second row of a table, cannot be read so: its group goes on without the kernel.
    """

    state: defaultdict[Tensor, Any]
    param_groups: list[dict[str, Any]]

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether ``step`` unscales gradients by itself, which torch's kernel alone does: a gradient scaler asks."""
        return all(group["fused"] and all(map(_is_dense, group["params"])) for group in self.param_groups)

    @_step_supports_amp_scaling.setter
    def _step_supports_amp_scaling(self, _: bool) -> None:
        """torch's constructors set it for good."""

    def _init_group(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], *states: Any) -> bool:
        """As torch's: fill the lists with what the step of a group needs."""
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
    """torch's AdamW, always fused but for parameters with gaps."""

    def __init__(self, params: Any, lr: float | Tensor = 1e-3, **options: Any):
        super().__init__(params, lr, **options, fused=True)


class FusedSGD(_AnyLayout, torch.optim.SGD):
    """torch's SGD without dampening, always fused but for parameters with gaps.

    torch makes the momenta at the first step, all at once and without a value. It fails where one gradient comes later
    than another, and begins with whatever was in memory where a gradient scaler skips the first step. Here they are
    zero from the start, which without dampening is the same step.
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
    """Those that matter: of dimensions with more than one entry."""
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


def _is_dense(parameter: Tensor) -> bool:
    """Whether its numbers fill a piece of memory, in any order."""
    return parameter.is_contiguous() or _strides(torch.empty_like(parameter, device="meta")) == _strides(parameter)


def _laid_out_as(parameter: Tensor, tensor: Tensor) -> Tensor:
    if tensor.is_sparse or tensor.stride() == parameter.stride() or _strides(tensor) == _strides(parameter):
        return tensor
    return torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
