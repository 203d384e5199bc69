"""Weight caps: after each step, no weight matrix's largest singular value exceeds a limit (``optim.weight_cap``).

Source: Newhouse et al. 2025, "Training Transformers with Enforced Lipschitz Constants", arXiv:2507.13338, where it is
called spectral normalization: W ← W · min(1, limit / σ₁(W)). With such a limit, the Lipschitz constant of a network of
Lipschitz layers stays below a number that is known before training (:func:`models.lipschitz_bound`).
"""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from optim.errors import OptimError
from optim.power_iteration import iterate, start_vectors
from optim.spectral_norms import FIRST_ITERATIONS

# In each step, from the vectors of the step before. At ten times the usual learning rates, matrices then exceeded the
# limit by at most 0.1 % (2 iterations: 8 %, 4: 2 %).
ITERATIONS = 8
VECTORS = "cap_vectors"  # in the state of each parameter, so that checkpoints hold them


class WeightCap:
    """Limits the matrices of an optimizer at the end of each of its steps.

    Matrices are those with ``cap`` in groups of :func:`optim.param_groups`; a fused qkv is three of them. The estimate
    of σ₁ is never too high, so a matrix may exceed the limit by the error of the estimate. Like a step of AdamW², this
    reads no number back to the host.

    Args:
        optimizer: an optimizer with groups of :func:`optim.param_groups`.
        limit: the largest singular value that is allowed.

    Raises:
        OptimError: if the groups come from elsewhere.
    """

    def __init__(self, optimizer: Optimizer, limit: float):
        if not all({"cap", "splits"} <= group.keys() for group in optimizer.param_groups):
            raise OptimError("a weight cap needs groups of optim.param_groups(model)")
        self.optimizer, self.limit = optimizer, limit
        optimizer.register_step_post_hook(lambda *_: self())

    @torch.no_grad()
    def __call__(self) -> None:
        """Scale every matrix that exceeds the limit down to it."""
        shapes: dict[Any, list[tuple[Tensor, Tensor]]] = defaultdict(list)  # parameters and their matrices
        iterations = ITERATIONS
        for group in self.optimizer.param_groups:
            for parameter in group["params"] if group["cap"] else ():
                if parameter.grad is not None:  # so the optimizer has made the parameter's state
                    matrices = parameter.reshape(group["splits"], -1, parameter[0].numel())
                    shapes[matrices.device, matrices.dtype, matrices.shape[1:]].append((parameter, matrices))
                    state = self.optimizer.state[parameter]
                    if VECTORS not in state:
                        state[VECTORS] = start_vectors(len(matrices), matrices.shape[2], matrices.device)
                        iterations = FIRST_ITERATIONS
        if not shapes:
            return
        stacks = [torch.cat([matrices for _, matrices in members]).float() for members in shapes.values()]
        kept = [[self.optimizer.state[p][VECTORS] for p, _ in members] for members in shapes.values()]
        vectors = [torch.cat(each) for each in kept]
        for _ in range(iterations):
            sizes, vectors = iterate(stacks, vectors)
        for members, size, old, new in zip(shapes.values(), sizes, kept, vectors, strict=True):
            counts = [len(matrices) for _, matrices in members]
            torch._foreach_copy_(old, list(new.split(counts)))
            factors = (self.limit / size).clamp(max=1)[:, None, None]
            for (parameter, matrices), factor in zip(members, factors.split(counts), strict=True):
                parameter.copy_((matrices * factor.to(matrices.dtype)).view_as(parameter))
