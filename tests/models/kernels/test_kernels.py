"""The Triton kernels against the plain operations in float64: results and all gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor

from models.kernels import operators, plain

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}  # of the largest value
DROP = torch.tensor([0, 1.25, 1.25])  # factors of stochastic depth


def convolution_inputs(shape: tuple[int, ...], k: int, residual: bool) -> list[Tensor]:
    channels = shape[-1]
    inputs = [torch.randn(shape), torch.randn(channels, 1, k, k) / k, torch.randn(channels)]
    return [*inputs, torch.randn(channels), DROP[: shape[0]]] if residual else inputs


def norm_inputs(shape: tuple[int, ...]) -> list[Any]:
    channels = shape[-1]
    scale, weight, bias = torch.randn(3, channels)
    return [torch.randn(shape), torch.randn(shape), scale, DROP[: shape[0]], weight, bias]


def check(name: str, inputs: list[Any], dtype: torch.dtype, device: torch.device) -> None:
    """Maps have ``dtype``; weights stay in float32, as under autocast."""
    inputs = [x.to(device, dtype) if isinstance(x, Tensor) and x.ndim == 4 and x.shape[1] > 1 else x for x in inputs]
    inputs = [x.to(device) if isinstance(x, Tensor) else x for x in inputs]
    mine = [x.clone().requires_grad_() if isinstance(x, Tensor) else x for x in inputs]
    exact = [x.double().requires_grad_() if isinstance(x, Tensor) else x for x in inputs]
    result, expected = getattr(operators, name)(*mine), getattr(plain, name)(*exact)
    assert result.dtype == dtype
    gradient = torch.randn(result.shape).to(result)
    result.backward(gradient)
    expected.backward(gradient.double())
    pairs = [(result, expected), *((a.grad, b.grad) for a, b in zip(mine, exact, strict=True) if a is not b)]
    for found, true in pairs:
        if found is not None:  # nothing learns from stochastic depth
            assert (found - true).abs().max() <= TOLERANCE[dtype] * true.abs().max()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_depthwise_convolution_with_gelu_is_exact_in_every_precision(dtype: torch.dtype, triton_device: torch.device):
    check("depthwise_gelu", convolution_inputs((2, 3, 5, 5), 3, residual=False), dtype, triton_device)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_convolution_as_a_residual_is_exact_in_every_precision(dtype: torch.dtype, triton_device: torch.device):
    check("depthwise_gelu_residual", convolution_inputs((3, 4, 3, 6), 3, residual=True), dtype, triton_device)


@pytest.mark.parametrize("residual", [pytest.param(False, marks=pytest.mark.slow), True])
def test_kernels_larger_than_the_map_and_several_programs_are_exact(residual: bool, triton_device: torch.device):
    """7x7 kernels; 66 pixels and 33 channels, one program more than fits each."""
    name = "depthwise_gelu_residual" if residual else "depthwise_gelu"
    check(name, convolution_inputs((1, 3, 22, 33), 7, residual), torch.float32, triton_device)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_residual_with_its_norm_is_exact_in_every_precision(dtype: torch.dtype, triton_device: torch.device):
    check("residual_center_norm", norm_inputs((3, 5, 7, 40)), dtype, triton_device)


def test_a_norm_over_more_channels_than_a_program_has_elements_is_exact(triton_device: torch.device):
    check("residual_center_norm", norm_inputs((2, 2, 3, 5000)), torch.float32, triton_device)


def test_gradients_have_the_same_bits_each_time(triton_device: torch.device):
    inputs = [x.to(triton_device) for x in convolution_inputs((2, 3, 5, 8), 3, residual=True)]
    gradients = []
    for _ in range(2):
        x, *others = (tensor.clone().requires_grad_() for tensor in inputs)
        operators.depthwise_gelu_residual(x, *others).square().sum().backward()
        gradients.append([x.grad, *(other.grad for other in others[:3])])
    assert all(map(torch.equal, *gradients))
