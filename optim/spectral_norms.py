"""Return the largest singular values of the weights that an optimizer trains, with AdamW²'s vectors if it has them."""

import torch
from torch import Tensor
from torch.optim import Optimizer

from optim.errors import OptimError
from optim.power_iteration import iterate, largest_singular_values

PARTS = {3: ("q", "k", "v")}


@torch.no_grad()
def spectral_norms(optimizer: Optimizer) -> dict[str, Tensor]:
    """Return the largest singular value of every matrix by the name of its layer, without changing the optimizer.

    The optimizer's groups must come from :func:`optim.param_groups`. With AdamW²'s vectors a single iteration is
    enough; for other optimizers the iteration starts from new vectors. A fused qkv weight has one value each for
    queries, keys and values.

    Raises:
        OptimError: if the groups do not come from that function.
    """
    if not all({"param_names", "cap", "splits"} <= group.keys() for group in optimizer.param_groups):
        raise OptimError("spectral_norms needs named groups: build the optimizer with optim.param_groups(model)")
    known: dict[str, tuple[Tensor, Tensor]] = {}  # layer name: matrices and vectors
    unknown: dict[str, Tensor] = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            if group["cap"]:
                layer, state = name.removesuffix(".weight"), optimizer.state.get(parameter, {})
                matrices = parameter.detach().reshape(group["splits"], -1, parameter[0].numel()).float()
                if "vectors" in state:
                    known[layer] = matrices, state["vectors"][1]
                else:
                    unknown[layer] = matrices
    found: dict[str, Tensor] = {}
    if known:
        values, _ = iterate(*map(list, zip(*known.values(), strict=True)))
        for layer, of_layer in zip(known, values, strict=True):
            found |= _named(layer, of_layer)
    if unknown:
        for layer, of_layer in zip(unknown, largest_singular_values(list(unknown.values())), strict=True):
            found |= _named(layer, of_layer)
    return found


def _named(layer: str, values: Tensor) -> dict[str, Tensor]:
    """Return a layer's value under its name, or one value for each of its parts."""
    if len(values) == 1:
        return {layer: values[0]}
    return {
        f"{layer}.{part}": value for part, value in zip(PARTS.get(len(values), range(len(values))), values, strict=True)
    }
