"""How far a model's output moves for a small move of a real input: the steepest direction at each image."""

import warnings

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from stability.errors import StabilityError
from stability.modes import eval_mode


def local_lipschitz(model: nn.Module, x: Tensor, tolerance: float = 1e-3, max_iterations: int = 200) -> Tensor:
    """The largest singular value of the Jacobian of ``model`` at each image of ``x``, in eval mode.

    Power iteration on J Jᵀ from a fixed start; it errs low. It ends once ‖J Jᵀu − σ²u‖ ≤ tolerance · σ² for every
    image: then σ is within tolerance / 2, relatively, of a singular value. The model's modes and gradients stay.

    Args:
        model: maps a batch to one tensor, each image for itself.
        x: ``(batch, ...)``, floating point, on the model's device.
        tolerance: relative size of the residual at which to stop.
        max_iterations: stop here at the latest, with a warning.

    Returns:
        ``(batch,)`` in the dtype of the model's output.

    Raises:
        StabilityError: if ``x`` is no batch of real numbers, or the model's output is not a tensor of that batch.
    """
    if x.dim() < 2 or not x.is_floating_point():
        raise StabilityError(f"local_lipschitz needs a batch of floating-point inputs and got {_describe(x)}")
    x = x.detach().clone().requires_grad_()
    # Constant to autograd, so that no gradient of a weight is computed on the way.
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
    """σ₁ of ∂y/∂x for each image; images do not mix, so one batch does for all."""
    # Jᵀu is linear in u, so its own VJP is the JVP: no layer needs a forward-mode derivative.
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
        warnings.warn(f"local_lipschitz: not converged after {max_iterations} iterations, errs low", stacklevel=3)
    return _norms(back).detach()


def _norms(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)


def _along(scale: Tensor, x: Tensor) -> Tensor:
    """``(batch,)`` shaped to multiply ``x``."""
    return scale.view(-1, *[1] * (x.dim() - 1))


def _unit(x: Tensor) -> Tensor:
    """Each image to length 1, zero to zero."""
    return x / _along(_norms(x).clamp_min(torch.finfo(x.dtype).tiny), x)


def _describe(x: object) -> str:
    return f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
