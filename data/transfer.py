"""Sends the host's numbers to the device."""

import torch
from numpy.typing import NDArray
from torch import Tensor


def send(array: NDArray, device: torch.device) -> Tensor:
    """An array as a tensor on a device. On a CPU it shares the memory; the host does not wait for a GPU."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
