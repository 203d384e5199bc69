"""Where the Triton kernels replace plain operations."""

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
from models.kernels import operators, plain

KERNELS = ("auto", "triton", "torch")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Operation = Callable[..., Tensor]
PAIRS: dict[str, tuple[Operation, Operation]] = {
    "depthwise_gelu": (operators.depthwise_gelu, plain.depthwise_gelu),
    "depthwise_gelu_residual": (operators.depthwise_gelu_residual, plain.depthwise_gelu_residual),
    "residual_center_norm": (operators.residual_center_norm, plain.residual_center_norm),
}
RUNS = 5  # of each operation when their times are compared


def set_kernels(model: nn.Module, kernels: str) -> None:
    """Choose the operations of a model's layers in training.

    Args:
        model: a model; only LipsFormers have layers with kernels.
        kernels: ``"auto"`` uses a Triton kernel on a GPU where it measures as faster, for each shape; ``"triton"`` uses
            it always; ``"torch"`` uses plain operations.

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


def wants_triton(kernels: str, name: str, x: Tensor, kernel_size: int = 0) -> bool:
    """Whether a layer in training computes with a Triton kernel.

    Args:
        kernels: the layer's choice.
        name: name of the operation in :mod:`models.kernels.operators`.
        x: the layer's input, ``(batch, height, width, channels)``.
        kernel_size: side of the convolution's kernel.
    """
    if torch.jit.is_scripting():  # TorchScript does not compile the other branch
        return False
    else:
        return _decide(kernels, name, x, kernel_size)


def _decide(kernels: str, name: str, x: Any, kernel_size: int) -> bool:
    # FX passes a proxy instead of a tensor. Exported programs keep operations that every runtime supports.
    if kernels == "torch" or not isinstance(x, Tensor) or torch.compiler.is_exporting() or torch.jit.is_tracing():
        return False
    if x.ndim != 4 or x.dtype not in DTYPES or not torch.is_grad_enabled():
        return False
    if kernels == "triton":
        return True
    if name == "residual_center_norm" and torch.compiler.is_compiling():
        return False  # the compiler fuses a norm with the operations around it by itself
    return suits_triton(x.device) and is_faster(name, tuple(x.shape), x.dtype, x.device, kernel_size)


# The compiler must not look into these two. It looks through a cache, so the caches are functions of their own.
@torch.compiler.assume_constant_result
def suits_triton(device: torch.device) -> bool:
    """Whether Triton is installed and the device is an NVIDIA GPU that it supports."""
    return _suits_triton(device)


@torch.compiler.assume_constant_result
def is_faster(name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, kernel_size: int) -> bool:
    """Whether the Triton kernel trains faster than the plain operations in eager mode. It is measured once a shape.

    torch.compile calls this while it traces, and keeps the answer.
    """
    return _is_faster(name, shape, dtype, device, kernel_size)


@cache
def _suits_triton(device: torch.device) -> bool:
    if device.type != "cuda" or not torch.cuda.is_available() or importlib.util.find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


@cache
def _is_faster(name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, kernel_size: int) -> bool:
    try:
        kernel, operations = (_milliseconds(each, name, shape, dtype, device, kernel_size) for each in PAIRS[name])
    except Exception as error:  # such as a machine without a C compiler, which Triton needs
        warnings.warn(f"Triton cannot compile {name}, so plain operations are used: {error}", stacklevel=2)
        return False
    return kernel < operations


def _milliseconds(operation: Operation, name: str, shape: tuple[int, ...], *others: Any) -> float:
    """Median time of a forward and backward pass on random numbers."""
    inputs, gradient = _inputs(name, shape, *others)
    times = []
    nothing = saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)  # hides those of a checkpointed stage
    with torch.cuda.device(gradient.device), torch.enable_grad(), torch.autocast("cuda", enabled=False), nothing:
        for _ in range(RUNS + 2):  # the first two compile the kernel and fill the allocator's cache
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            operation(*inputs).backward(gradient)
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
    return median(times[2:])


def _inputs(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, kernel_size: int
) -> tuple[list[Any], Tensor]:
    """Return random arguments of an operation, and a gradient of its result."""
    generator = torch.Generator(device).manual_seed(0)

    def random(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        drawn = torch.randn(size, dtype=dtype, device=device, generator=generator)
        return drawn.requires_grad_()

    n, *_, channels = shape
    x, drop = random(*shape, dtype=dtype), torch.ones(n, device=device)
    if name == "residual_center_norm":
        rest = [random(*shape, dtype=dtype), random(channels), drop, random(channels), random(channels)]
    else:
        rest = [random(channels, 1, kernel_size, kernel_size), random(channels)]
        rest += [random(channels), drop] if name == "depthwise_gelu_residual" else []
    return [x, *rest], torch.randn(shape, dtype=dtype, device=device, generator=generator)
