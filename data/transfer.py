"""Sends the host's numbers to the device."""

import torch
from numpy.typing import NDArray
from torch import Tensor


def send(device: torch.device, *arrays: NDArray) -> list[Tensor]:
    """Arrays of one type as tensors on a device. The host does not wait for a GPU, and one copy brings them all.

    On a CPU the tensors share the arrays' memory.
    """
    tensors = [torch.from_numpy(array) for array in arrays]
    if device.type != "cuda":
        return [tensor.to(device) for tensor in tensors]
    packed = torch.cat([tensor.flatten() for tensor in tensors]).pin_memory().to(device, non_blocking=True)
    parts = packed.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
