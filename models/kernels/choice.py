"""Where the Triton kernel replaces plain operations."""

import importlib.util
import os
import warnings
from collections.abc import Callable
from functools import cache
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from models.errors import ModelError
from models.kernels import plain
from models.kernels.operator import residual_center_norm

KERNELS = ("auto", "triton", "torch")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Operation = Callable[..., Tensor]
RUNS = 5  # of each operation when their times are compared


def set_kernels(model: nn.Module, kernels: str) -> None:
    """Choose the operations of a model's layers in training.

    Args:
        model: a model; only LipsFormers have layers with kernels.
        kernels: ``"auto"`` uses the Triton kernel on a GPU where it measures as faster, for each shape; ``"triton"``
            uses it always; ``"torch"`` uses plain operations.

    Raises:
        ModelError: if Triton is wanted and cannot run here.
    """
    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if kernels == "triton" and not (is_interpreted or suits_triton(torch.device("cuda"))):
        raise ModelError(
            "model.kernels=triton needs the package triton and an NVIDIA GPU of compute capability 8.0 or more: "
            "set model.kernels=auto"
        )
    for module in model.modules():
        if hasattr(module, "kernels"):
            setattr(module, "kernels", kernels)  # noqa: B010  (mypy takes modules' attributes for tensors)


def wants_triton(kernels: str, x: Tensor) -> bool:
    """Whether a layer in training computes with the Triton kernel.

    Args:
        kernels: the layer's choice.
        x: the layer's input, ``(batch, height, width, channels)``.
    """
    if torch.jit.is_scripting():  # TorchScript does not compile the other branch
        return False
    else:
        return _decide(kernels, x)


def _decide(kernels: str, x: Any) -> bool:
    # FX passes a proxy instead of a tensor. Exported programs keep operations that every runtime supports.
    if kernels == "torch" or not isinstance(x, Tensor) or torch.compiler.is_exporting() or torch.jit.is_tracing():
        return False
    if x.ndim != 4 or x.dtype not in DTYPES or not torch.is_grad_enabled():
        return False
    if kernels == "triton":
        return True
    if torch.compiler.is_compiling():
        return False  # the compiler fuses a norm with the operations around it by itself
    return suits_triton(x.device) and is_faster(tuple(x.shape), x.dtype, x.device)


@cache
def suits_triton(device: torch.device) -> bool:
    """Whether Triton is installed and the device is an NVIDIA GPU that it supports."""
    if device.type != "cuda" or not torch.cuda.is_available() or importlib.util.find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


@cache
def is_faster(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the Triton kernel trains faster than the plain operations in eager mode. It is measured once a shape."""
    try:
        kernel, operations = (
            _milliseconds(each, shape, dtype, device) for each in (residual_center_norm, plain.residual_center_norm)
        )
    except Exception as error:  # such as a machine without a C compiler, which Triton needs
        warnings.warn(f"Triton cannot compile a kernel, so plain operations are used: {error}", stacklevel=2)
        return False
    return kernel < operations


def _milliseconds(operation: Operation, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> float:
    """Median time of a forward and backward pass on random numbers."""
    inputs, gradient = _inputs(shape, dtype, device)
    times = []
    # In a checkpointed stage these hooks take the place of those that would recompute the tensors.
    keep = saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
    with torch.cuda.device(device), torch.enable_grad(), torch.autocast("cuda", enabled=False), keep:
        for _ in range(RUNS + 2):  # the first two compile the kernel and fill the allocator's cache
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            operation(*inputs).backward(gradient)
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
    return median(times[2:])


def _inputs(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[list[Tensor], Tensor]:
    """Return random arguments of the operation, and a gradient of its result."""
    generator = torch.Generator(device).manual_seed(0)

    def random(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        drawn = torch.randn(size, dtype=dtype, device=device, generator=generator)
        return drawn.requires_grad_()

    n, *_, channels = shape
    x, branch = (random(*shape, dtype=dtype) for _ in range(2))
    scale, weight, bias = (random(channels) for _ in range(3))
    gradient = torch.randn(shape, dtype=dtype, device=device, generator=generator)
    return [x, branch, scale, torch.ones(n, device=device), weight, bias], gradient
