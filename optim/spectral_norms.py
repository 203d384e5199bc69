"""Largest singular values of the weights an optimizer trains, from its own estimates where it keeps them."""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from optim.errors import OptimError
from optim.power_iteration import converge, iterate

PARTS = {3: ("q", "k", "v")}


@torch.no_grad()
def spectral_norms(optimizer: Optimizer) -> dict[str, Tensor]:
    """The largest singular value of every matrix in groups of :func:`optim.param_groups`, by the name of its layer.

    AdamW²'s vectors, kept from its last step, need a single iteration; for other optimizers the values are found anew.
    Nothing in the optimizer changes. Queries, keys and values in one weight have a value each.

    Raises:
        OptimError: if the groups are not of that function, and say neither names nor what is a matrix.
    """
    if not all({"param_names", "cap", "splits"} <= group.keys() for group in optimizer.param_groups):
        raise OptimError("spectral_norms needs named groups: build the optimizer of optim.param_groups(model)")
    stacks: dict[tuple[Any, ...], list[tuple[str, Tensor, Tensor | None]]] = defaultdict(list)
    for group in optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            if group["cap"]:
                vector = optimizer.state[parameter].get("weight_vector") if parameter in optimizer.state else None
                matrices = parameter.detach().reshape(group["splits"], -1, parameter[0].numel()).float()
                key = (matrices.shape, vector is None)
                stacks[key].append((name.removesuffix(".weight"), matrices, vector))
    return {name: value for members in stacks.values() for name, value in _of_one_shape(members).items()}


def _of_one_shape(members: list[tuple[str, Tensor, Tensor | None]]) -> dict[str, Tensor]:
    matrices = torch.cat([matrices for _, matrices, _ in members])
    kept = [vector for _, _, vector in members if vector is not None]
    values = iterate(matrices, torch.cat(kept).float(), 1)[0] if kept else converge(matrices)[0]
    splits = len(members[0][1])
    parts = PARTS.get(splits, range(splits))
    names = [f"{name}.{part}" if splits > 1 else name for name, _, _ in members for part in parts]
    return dict(zip(names, values, strict=True))
