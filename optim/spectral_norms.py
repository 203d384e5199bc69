"""Largest singular values of the weights that an optimizer trains, from vectors that are kept between readings."""

import torch
from torch import Tensor
from torch.optim import Optimizer

from optim.errors import OptimError
from optim.power_iteration import estimate, start_vectors

FIRST_ITERATIONS = 32  # from random vectors; for random matrices the values are then at most 0.2 % too low
ITERATIONS = 3  # from vectors of the last reading, or AdamW²'s
PARTS = {3: ("q", "k", "v")}


class SpectralNorms:
    """Reads the largest singular value of every matrix by the name of its layer, without changing the optimizer.

    A fused qkv weight has one value each for queries, keys and values. Power iteration starts from AdamW²'s vectors,
    or for other optimizers from those of the last reading. Checkpoints do not hold the vectors of readings, so the
    first reading of a resumed run starts from random ones. A reading stacks the matrices of one shape, and the host
    does not wait.

    Args:
        optimizer: an optimizer whose groups come from :func:`optim.param_groups`.

    Raises:
        OptimError: if they come from elsewhere.
    """

    def __init__(self, optimizer: Optimizer):
        if not all({"param_names", "cap", "splits"} <= group.keys() for group in optimizer.param_groups):
            raise OptimError("SpectralNorms needs named groups: build the optimizer with optim.param_groups(model)")
        self.optimizer = optimizer
        self.vectors: dict[str, Tensor] = {}  # by layer, (splits, VECTORS, columns)

    @torch.no_grad()
    def __call__(self) -> dict[str, Tensor]:
        """Return the largest singular value of each matrix, a scalar on its device."""
        matrices: dict[str, Tensor] = {}  # by layer
        iterations = ITERATIONS
        for group in self.optimizer.param_groups:
            for name, parameter in zip(group["param_names"], group["params"], strict=True):
                if group["cap"]:
                    layer, state = name.removesuffix(".weight"), self.optimizer.state.get(parameter, {})
                    matrices[layer] = stack = parameter.detach().reshape(group["splits"], -1, parameter[0].numel())
                    if "vectors" in state:
                        self.vectors[layer] = state["vectors"][1]
                    elif layer not in self.vectors:
                        self.vectors[layer] = start_vectors(len(stack), stack.shape[2], stack.device)
                        iterations = FIRST_ITERATIONS
        if not matrices:
            return {}
        sizes, self.vectors = estimate(matrices, self.vectors, iterations)
        return {name: value for layer, values in sizes.items() for name, value in _named(layer, values).items()}


def _named(layer: str, values: Tensor) -> dict[str, Tensor]:
    """Return a layer's value under its name, or one value for each of its parts."""
    if len(values) == 1:
        return {layer: values[0]}
    return {
        f"{layer}.{part}": value for part, value in zip(PARTS.get(len(values), range(len(values))), values, strict=True)
    }
