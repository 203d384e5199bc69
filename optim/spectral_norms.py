"""Largest singular values of the weights an optimizer trains, from its own vectors where it keeps them."""

from collections import defaultdict

import torch
from torch import Tensor
from torch.optim import Optimizer

from optim.errors import OptimError
from optim.power_iteration import converge, iterate

PARTS = {3: ("q", "k", "v")}


@torch.no_grad()
def spectral_norms(optimizer: Optimizer) -> dict[str, Tensor]:
    """The largest singular value of every matrix in groups of :func:`optim.param_groups`, by the name of its layer.

    Of AdamW²'s vectors one product finds them; for other optimizers they are found anew.
    Nothing in the optimizer changes. Queries, keys and values in one weight have a value each.

    Raises:
        OptimError: if the groups are not of that function, and say neither names nor what is a matrix.
    """
    if not all({"param_names", "cap", "splits"} <= group.keys() for group in optimizer.param_groups):
        raise OptimError("spectral_norms needs named groups: build the optimizer of optim.param_groups(model)")
    found: dict[str, Tensor] = {}
    unknown: dict[torch.Size, list[tuple[str, Tensor]]] = defaultdict(list)
    for group in optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            if group["cap"]:
                layer, state = name.removesuffix(".weight"), optimizer.state.get(parameter, {})
                matrices = parameter.detach().reshape(group["splits"], -1, parameter[0].numel()).float()
                if "vectors" in state:
                    found |= _named(layer, iterate([matrices], state["vectors"][1].float())[0])
                else:
                    unknown[matrices.shape].append((layer, matrices))
    for members in unknown.values():
        values = converge([matrices for _, matrices in members])[0].view(len(members), -1)
        for (layer, _), of_layer in zip(members, values, strict=True):
            found |= _named(layer, of_layer)
    return found


def _named(layer: str, values: Tensor) -> dict[str, Tensor]:
    """A layer's value under its name, or that of each of its parts."""
    if len(values) == 1:
        return {layer: values[0]}
    return {
        f"{layer}.{part}": value for part, value in zip(PARTS.get(len(values), range(len(values))), values, strict=True)
    }
