"""Copies arrays from the host to the device, and runs work on a CUDA stream of its own."""

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

Tensors = TypeVar("Tensors", bound=Iterable[Tensor])


def send(device: torch.device, array: NDArray) -> Tensor:
    """An array as a tensor on a device. The host does not wait for a GPU. On a CPU the tensor shares its memory."""
    return send_together(device, array)[0]


def send_together(device: torch.device, *arrays: NDArray) -> list[Tensor]:
    """Arrays of one type, as :func:`send`. One copy brings them all to a GPU."""
    tensors = [torch.from_numpy(array) for array in arrays]
    if device.type != "cuda":
        return [tensor.to(device) for tensor in tensors]
    packed = torch.cat([tensor.flatten() for tensor in tensors]).pin_memory().to(device, non_blocking=True)
    parts = packed.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def on_stream(stream: torch.cuda.Stream | None, work: Callable[[], Tensors]) -> Tensors:
    """Let a GPU make tensors on a CUDA stream, beside what it does on the current one.

    The current stream then waits for the tensors; the host does not.

    Args:
        stream: where ``work`` is done; ``None``, as on a CPU: just do it.
        work: makes the tensors.
    """
    with torch.cuda.stream(stream):
        made = work()
    if stream is not None:
        current = torch.cuda.current_stream(stream.device)
        current.wait_stream(stream)
        for tensor in made:
            tensor.record_stream(current)  # torch must not reuse the memory before that stream is done with it
    return made
