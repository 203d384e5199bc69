"""The Triton kernel against the plain operations in float64: results and all gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor

from models.kernels import plain, residual_center_norm

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}  # of the largest value
DROP = torch.tensor([0, 1.25, 1.25])  # factors of stochastic depth


def norm_inputs(shape: tuple[int, ...]) -> list[Any]:
    channels = shape[-1]
    scale, weight, bias = torch.randn(3, channels)
    return [torch.randn(shape), torch.randn(shape), scale, DROP[: shape[0]], weight, bias]


def check(inputs: list[Any], dtype: torch.dtype, device: torch.device) -> None:
    """Maps have ``dtype``; weights stay in float32, as under autocast."""
    inputs = [x.to(device, dtype) if isinstance(x, Tensor) and x.ndim == 4 and x.shape[1] > 1 else x for x in inputs]
    inputs = [x.to(device) if isinstance(x, Tensor) else x for x in inputs]
    mine = [x.clone().requires_grad_() if isinstance(x, Tensor) else x for x in inputs]
    exact = [x.double().requires_grad_() if isinstance(x, Tensor) else x for x in inputs]
    result, expected = residual_center_norm(*mine), plain.residual_center_norm(*exact)
    assert result.dtype == dtype
    gradient = torch.randn(result.shape).to(result)
    result.backward(gradient)
    expected.backward(gradient.double())
    pairs = [(result, expected), *((a.grad, b.grad) for a, b in zip(mine, exact, strict=True) if a is not b)]
    for found, true in pairs:
        if found is not None:  # nothing learns from stochastic depth
            assert (found - true).abs().max() <= TOLERANCE[dtype] * true.abs().max()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_residual_with_its_norm_is_exact_in_every_precision(dtype: torch.dtype, triton_device: torch.device):
    check(norm_inputs((3, 5, 7, 40)), dtype, triton_device)


def test_a_norm_over_more_channels_than_a_program_has_elements_is_exact(triton_device: torch.device):
    check(norm_inputs((2, 2, 3, 5000)), torch.float32, triton_device)


def test_gradients_have_the_same_bits_each_time(triton_device: torch.device):
    inputs = [x.to(triton_device) for x in norm_inputs((2, 3, 5, 8))]
    gradients = []
    for _ in range(2):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        residual_center_norm(*leaves).square().sum().backward()
        gradients.append([leaf.grad for leaf in leaves if leaf.grad is not None])
    assert all(map(torch.equal, *gradients))
