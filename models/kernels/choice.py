"""Where the Triton kernels replace plain operations."""

import importlib.util
import os
from collections.abc import Callable
from functools import cache
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

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
        kernels: ``"auto"`` takes Triton on GPUs, for each shape for which it is faster; ``"triton"`` takes it always;
            ``"torch"`` takes plain operations.

    Raises:
        ModelError: if Triton is wanted and cannot run here.
    """
    if kernels == "triton" and not _runs_triton(torch.device("cuda" if torch.cuda.is_available() else "cpu")):
        raise ModelError("model.kernels=triton needs an NVIDIA GPU and the package triton: set model.kernels=auto")
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
    if x.device.type != "cuda" or not _runs_triton(x.device):
        return False
    if name == "residual_center_norm" and torch.compiler.is_compiling():
        return False  # the compiler fuses a norm with the operations around it by itself
    return is_faster(name, tuple(x.shape), x.dtype, x.device, kernel_size)


def _runs_triton(device: torch.device) -> bool:
    """Whether Triton kernels run on a device: on NVIDIA GPUs, and in Triton's interpreter."""
    if importlib.util.find_spec("triton") is None:
        return False
    if os.environ.get("TRITON_INTERPRET") == "1":
        return True
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


@torch.compiler.assume_constant_result
@cache
def is_faster(name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, kernel_size: int) -> bool:
    """Whether the Triton kernel trains faster than the plain operations. It is measured once for each shape."""
    kernel, operations = (
        _milliseconds(operation, name, shape, dtype, device, kernel_size) for operation in PAIRS[name]
    )
    return kernel < operations


def _milliseconds(operation: Operation, name: str, shape: tuple[int, ...], *others: Any) -> float:
    """Median time of a forward and backward pass on random numbers."""
    inputs, gradient = _inputs(name, shape, *others)
    times = []
    with torch.enable_grad(), torch.autocast(gradient.device.type, enabled=False):
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
        rest = [random(*shape, dtype=dtype), random(channels), drop, random(channels), random(channels), 1.0]
    else:
        rest = [random(channels, 1, kernel_size, kernel_size), random(channels)]
        rest += [random(channels), drop] if name == "depthwise_gelu_residual" else []
    return [x, *rest], torch.randn(shape, dtype=dtype, device=device, generator=generator)
