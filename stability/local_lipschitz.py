"""Local Lipschitz constant: how far a model's output moves in the steepest direction at a given image."""

import warnings

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from stability.errors import StabilityError
from stability.modes import eval_mode


def local_lipschitz(model: nn.Module, x: Tensor, tolerance: float = 1e-3, max_iterations: int = 200) -> Tensor:
    """The largest singular value of the Jacobian of ``model`` at each image of ``x``, in eval mode.

    It uses power iteration on J Jᵀ from a fixed start, whose result can be too low but not too high. It stops when
    ‖J Jᵀu − σ²u‖ ≤ tolerance · σ² for every image. Then σ is close to a singular value: the relative error is at most
    tolerance / 2. The model's modes and gradients do not change.

    Args:
        model: maps a batch to one tensor, each image independently of the others.
        x: ``(batch, ...)``, floating point, on the model's device.
        tolerance: relative size of the residual at which to stop.
        max_iterations: largest number of iterations; when it is reached, there is a warning.

    Returns:
        ``(batch,)`` in the dtype of the model's output.

    Raises:
        StabilityError: if ``x`` or the model's output is not a floating-point batch, or their batch sizes differ.
    """
    if x.dim() < 2 or not x.is_floating_point():
        raise StabilityError(f"local_lipschitz needs a batch of floating-point inputs and got {_describe(x)}")
    x = x.detach().clone().requires_grad_()
    # Detached, so that autograd computes no gradients of weights.
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    # The fused attention kernels have no second derivative.
    with eval_mode(model), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        y = torch.func.functional_call(model, weights, (x,))
        if not isinstance(y, Tensor) or not y.is_floating_point() or y.shape[:1] != x.shape[:1]:
            raise StabilityError(f"local_lipschitz needs one output for each of {len(x)} inputs, got {_describe(y)}")
        if not y.requires_grad:
            return y.new_zeros(len(y))
        return _power_iteration(y, x, tolerance, max_iterations)


def _power_iteration(y: Tensor, x: Tensor, tolerance: float, max_iterations: int) -> Tensor:
    """σ₁ of ∂y/∂x for each image. Images do not influence each other, so one batch computes them all."""
    # Jᵀu is linear in u, so its VJP is the JVP of the model. No layer needs a forward-mode derivative.
    probe = torch.zeros_like(y, requires_grad=True)
    (pulled,) = torch.autograd.grad(y, x, probe, create_graph=True, materialize_grads=True)
    generator = torch.Generator().manual_seed(0)
    u = _unit(torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y))
    for _ in range(max_iterations):
        (back,) = torch.autograd.grad(y, x, u, retain_graph=True, materialize_grads=True)
        if pulled.requires_grad:
            (u_next,) = torch.autograd.grad(pulled, probe, back, retain_graph=True, materialize_grads=True)
        else:
            u_next = torch.zeros_like(u)
        squared = _norms(back).square()
        if (_norms(u_next - _along(squared, u) * u) <= tolerance * squared).all():
            break
        u = _unit(u_next)
    else:
        warnings.warn(
            f"local_lipschitz: not converged after {max_iterations} iterations, so the result is too low: "
            f"raise max_iterations",
            stacklevel=3,
        )
    return _norms(back).detach()


def _norms(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)


def _along(scale: Tensor, x: Tensor) -> Tensor:
    """``(batch,)`` shaped to multiply ``x``."""
    return scale.view(-1, *[1] * (x.dim() - 1))


def _unit(x: Tensor) -> Tensor:
    """Scale each image to length 1. An image of zeros stays zero."""
    return x / _along(_norms(x).clamp_min(torch.finfo(x.dtype).tiny), x)


def _describe(x: object) -> str:
    return f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
