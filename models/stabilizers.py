"""Methods of other papers to keep the training of a vision transformer stable."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

# Arguments of timm's VisionTransformer, for the stabilizers that timm has.
_ARGUMENTS: dict[str, dict[str, Any]] = {
    "none": {},
    # Touvron et al., "Going Deeper with Image Transformers", section 2, and timm's initial value. There 24 blocks begin
    # with it; up to 18 begin with 0.1.
    "layer_scale": {"init_values": 1e-5},
    "qk_norm": {"qk_norm": True},  # Dehghani et al., "Scaling Vision Transformers to 22 Billion Parameters", section 2
    "sigma_reparam": {},
}
STABILIZERS = tuple(_ARGUMENTS)
_NORMS = (nn.LayerNorm, nn.modules.batchnorm._BatchNorm)


def stabilizer_arguments(name: str) -> dict[str, Any]:
    """The arguments of timm's ``VisionTransformer`` for one of ``STABILIZERS``."""
    return _ARGUMENTS[name]


class SigmaReparam(nn.Module):
    """The weight ``gamma / sigma(W) * W``, whose largest singular value is the learned scalar ``gamma``.

    Source: Zhai et al., "Stabilizing Transformer Training by Preventing Attention Entropy Collapse", ICML 2023,
    section 3. At the start ``gamma = sigma(W)``, so the weight is ``W``. The weight of a convolution is the matrix
    ``(out, -1)``.

    Args:
        weight: initial ``W``.
    """

    direction: Tensor

    def __init__(self, weight: Tensor):
        super().__init__()
        self.register_buffer("direction", _right_singular_vector(weight))
        self.gamma = nn.Parameter(self._sigma(weight).detach())

    def forward(self, weight: Tensor) -> Tensor:
        """``W`` to the weight that the layer uses, of the same shape."""
        return self.gamma / self._sigma(weight) * weight

    def _sigma(self, weight: Tensor) -> Tensor:
        """The estimate ``|W v|``. Its gradient is ``u v^T``, as if both singular vectors were constants."""
        # In a moving average of models the vector is shorter than 1.
        direction = F.normalize(self.direction, dim=0)
        return torch.linalg.vector_norm(_times(weight.flatten(1), direction))

    @torch.no_grad()
    def advance(self, weight: Tensor) -> None:
        """One step of power iteration, ``v <- W^T W v``."""
        matrix = weight.flatten(1)
        self.direction.copy_(F.normalize(_times(matrix.T, _times(matrix, self.direction)), dim=0))


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    """``matrix @ vector`` in full precision. Autocast would use lower precision for ``@``, but not for this sum."""
    return (matrix * vector).sum(dim=1)


def _right_singular_vector(weight: Tensor) -> Tensor:
    """The exact first right singular vector of ``(out, -1)``. Power iteration from a random start would take long."""
    matrix = weight.detach().flatten(1).double()
    if matrix.is_meta:
        return weight.new_empty(matrix.shape[1])
    if matrix.shape[0] < matrix.shape[1]:
        vector = matrix.T @ torch.linalg.eigh(matrix @ matrix.T).eigenvectors[:, -1]
    else:
        vector = torch.linalg.eigh(matrix.T @ matrix).eigenvectors[:, -1]
    return F.normalize(vector, dim=0).to(weight.dtype)


def sigma_reparam_(model: nn.Module) -> None:
    """Add a :class:`SigmaReparam` to every Linear and Conv2d of a new model, and remove all norms.

    Each forward pass in training begins with one power iteration step for every layer. The step is not taken where a
    weight is used: activation checkpointing uses each weight twice and must get the same value both times.

    Args:
        model: a model whose ``patch_embed`` begins with a Conv2d.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, _NORMS):
                setattr(module, name, nn.Identity())
    for layer in list(model.modules()):
        reparametrize_(layer)
    begin_with_power_iteration_(model)


def begin_with_power_iteration_(model: nn.Module) -> None:
    """Take the power iteration steps of all layers before the first convolution of ``model.patch_embed`` runs.

    A hook on the model itself would miss ``forward_features``, feature extractors and traced graphs, which do not call
    the model. All of them call this convolution once, and activation checkpointing does not repeat it.
    """
    embed: Any = model.patch_embed
    first = next(m for m in embed.modules() if isinstance(m, nn.Conv2d))
    # A partial, because deepcopy copies its model too. A closure would keep the original model.
    first.register_forward_pre_hook(partial(_advance, model))


def reparametrize_(layer: nn.Module) -> None:
    """Add a :class:`SigmaReparam` to a Linear or Conv2d. Other modules are left unchanged."""
    if isinstance(layer, nn.Linear | nn.Conv2d):
        parametrize.register_parametrization(layer, "weight", SigmaReparam(layer.weight))


def take_away_(model: nn.Module) -> list[nn.Module]:
    """Remove every :class:`SigmaReparam` from a model; the weights become ``W``. Returns the layers that had one."""
    layers = [m for m in model.modules() if parametrize.is_parametrized(m, "weight")]
    for layer in layers:
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    return layers


def _advance(model: nn.Module, first: nn.Module, _: Any) -> None:
    if first.training:  # not model.training: a traced graph sets the mode of the layers only
        for held in model.modules():
            if isinstance(held, parametrize.ParametrizationList) and isinstance(held[0], SigmaReparam):
                held[0].advance(held.original)
