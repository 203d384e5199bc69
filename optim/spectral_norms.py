"""Largest singular values of the weights that an optimizer trains, from vectors that are kept between readings."""

import torch
from torch import Tensor
from torch.optim import Optimizer

from optim.errors import OptimError
from optim.power_iteration import FIRST_ITERATIONS, estimate, matrices_of, start_vectors

ITERATIONS = 3  # from vectors of the last reading, or AdamW²'s


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
                    matrices[layer] = stack = matrices_of(parameter.detach(), group["splits"])
                    if "vectors" in state:
                        self.vectors[layer] = state["vectors"][1]
                    elif layer not in self.vectors:
                        self.vectors[layer] = start_vectors(len(stack), stack.shape[2], stack.device)
                        iterations = FIRST_ITERATIONS
        if not matrices:
            return {}
        sizes, self.vectors = estimate(matrices, self.vectors, iterations)
        named: dict[str, Tensor] = {}
        for layer, values in sizes.items():
            named |= zip(_names(layer, len(values)), values, strict=True)
        return named


def _names(layer: str, splits: int) -> list[str]:
    """Return the names of the matrices in a layer's weight: its own, or those of queries, keys and values."""
    return [f"{layer}.{part}" for part in "qkv"] if splits == 3 else [layer]
