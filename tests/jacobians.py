"""Exact Jacobians of small modules, and modules with random parameters."""

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


def jacobian(function, x: Tensor) -> Tensor:
    """The Jacobian as a matrix, differentiable."""
    with sdpa_kernel(SDPBackend.MATH):
        return torch.func.jacrev(lambda flat: function(flat.view(x.shape)).flatten())(x.flatten())


def stretch(function, x: Tensor) -> Tensor:
    """The largest singular value of the Jacobian at ``x``."""
    return torch.linalg.matrix_norm(jacobian(function, x), 2)


def randomise(module: nn.Module, std: float, seed: int) -> nn.Module:
    """Convert a module to float64 and draw its parameters from a normal distribution."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.double().parameters():
        nn.init.normal_(parameter, std=std, generator=generator)
    return module
