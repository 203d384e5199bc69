"""Weight caps: after each step, no weight matrix's largest singular value exceeds a limit (``optim.weight_cap``).

Source: Newhouse et al. 2025, "Training Transformers with Enforced Lipschitz Constants", arXiv:2507.13338, where it is
called spectral normalization: W ← W · min(1, limit / σ₁(W)). With such a limit, the Lipschitz constant of a network of
Lipschitz layers stays below a number that is known before training (:func:`models.lipschitz_bound`).
"""

import torch
from torch import Tensor
from torch.optim import Optimizer

from optim.errors import OptimError
from optim.power_iteration import FIRST_ITERATIONS, estimate, matrices_of, start_vectors

# In each step, from the vectors of the step before. At ten times the usual learning rates, matrices then exceeded the
# limit by at most 0.1 % (2 iterations: 8 %, 4: 2 %).
ITERATIONS = 8
KEY = "cap_vectors"  # of the vectors in the state of each parameter, so that checkpoints hold them


def cap_weights(optimizer: Optimizer, limit: float) -> None:
    """Limit the matrices of an optimizer at the end of each of its steps.

    Matrices are those with ``cap`` in groups of :func:`optim.param_groups`; a fused qkv is three of them. The estimate
    of σ₁ is never too high, so a matrix may exceed the limit by the error of the estimate. Like a step of AdamW², this
    reads no number back to the host.

    Args:
        optimizer: an optimizer with groups of :func:`optim.param_groups`.
        limit: the largest singular value that is allowed.

    Raises:
        OptimError: if the groups come from elsewhere.
    """
    if not all({"cap", "splits"} <= group.keys() for group in optimizer.param_groups):
        raise OptimError("a weight cap needs groups of optim.param_groups(model)")
    optimizer.register_step_post_hook(lambda *_: _scale_down(optimizer, limit))


@torch.no_grad()
def _scale_down(optimizer: Optimizer, limit: float) -> None:
    """Scale every matrix that exceeds the limit down to it."""
    matrices: dict[Tensor, Tensor] = {}  # by parameter
    iterations = ITERATIONS
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["cap"] else ():
            if parameter.grad is not None:  # so the optimizer has made the parameter's state
                matrices[parameter] = stack = matrices_of(parameter, group["splits"])
                state = optimizer.state[parameter]
                if KEY not in state:
                    state[KEY] = start_vectors(len(stack), stack.shape[2], stack.device)
                    iterations = FIRST_ITERATIONS
    if not matrices:
        return
    kept = {parameter: optimizer.state[parameter][KEY] for parameter in matrices}
    sizes, vectors = estimate(matrices, kept, iterations)
    torch._foreach_copy_(list(kept.values()), [vectors[parameter] for parameter in kept])
    factors = (limit / torch.cat([sizes[parameter] for parameter in matrices])).clamp(max=1)[:, None, None]
    counts = [len(stack) for stack in matrices.values()]
    for (parameter, stack), factor in zip(matrices.items(), factors.split(counts), strict=True):
        parameter.copy_((stack * factor.to(stack.dtype)).view_as(parameter))
