"""Copy a state to the host's memory, so that training can go on while the copy is written to a file."""

import copy
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def snapshot(state: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a state on the CPU, which later steps do not change.

    Tensors of a GPU are copied into pinned memory, which is several times faster than into other memory. torch keeps
    that memory for the next copy. The copies wait for the steps that the GPU has still to compute, and this function
    waits for the copies.

    Args:
        state: dicts, lists and tuples of tensors and of values that never change, such as numbers and text.
    """
    copied = _copied(state)
    if torch.cuda.is_initialized():
        torch.cuda.current_stream().synchronize()
    return copied


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        host = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
        return host.copy_(value, non_blocking=True)
    if isinstance(value, dict):
        same = copy.copy(value)  # a state dict of a module also has the versions of its parts, as an attribute
        same.update((key, _copied(member)) for key, member in value.items())
        return same
    if isinstance(value, list | tuple):
        return type(value)(map(_copied, value))
    return value
