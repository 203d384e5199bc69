"""Parameters that AdamW² steps together, and the arithmetic of their step."""

import math
from typing import Any

import torch
from torch import Tensor

from optim.power_iteration import Matrices, gathered, iterate, orthonormal

# Updates of the first steps have little in common with the ones before: kept vectors are far off, and need more
# iterations. The n-th estimate in a row takes at least EARLY_ITERATIONS / n.
EARLY_ITERATIONS = 20
# On a CPU, iterations end once one of them raises no value by more than this share over the square of their number: who
# asks for more wants to know it more exactly.
SETTLED = 0.1
# Least decay λ with which the fused step aims at −u/λ. An iteration takes fourth powers of σ₁, which float32 holds up
# to σ₁ = 4e9. Entries of u are about 3 at most, so with this λ that suffices for matrices of 10¹⁰ entries.
LEAST_DECAY = 1e-4

State = dict[str, Any]
Group = dict[str, Any]


class Bundle:
    """Parameters of one device, type and age that step together; matrices under a cap are of one shape, too.

    What is kept for each lies side by side; the states of the optimizer hold views of it.

    Args:
        group: of the optimizer.
        parameters: of the group.
        states: of the parameters.
    """

    def __init__(self, group: Group, parameters: list[Tensor], states: list[State]):
        self.parameters, self.states = parameters, states
        self.size = sum(parameter.numel() for parameter in parameters)
        self.means = [state["exp_avg"] for state in states]
        self.squares = [state["exp_avg_sq"] for state in states]
        self.count = states[0]["step"].clone()
        for state in states:
            state["step"] = self.count
        self.capped = is_capped(group, parameters[0])
        if self.capped:
            self.sizes = self._side_by_side("weight_size").flatten()
            self.ratios = self._side_by_side("ratio").flatten()
            self.vectors = self._side_by_side("vectors", dim=1).flatten(1, 2)  # (2, matrices, k, columns)
        self._kept = [{name: value for name, value in s.items() if isinstance(value, Tensor)} for s in states]

    def holds(self, states: dict[Tensor, State]) -> bool:
        """Whether the optimizer's states are still those of this bundle: others may clear, move or replace them."""
        return all(
            states.get(parameter) is state and all(state.get(name) is value for name, value in kept.items())
            for parameter, state, kept in zip(self.parameters, self.states, self._kept, strict=True)
        )

    def _side_by_side(self, key: str, dim: int = 0) -> Tensor:
        together = torch.stack([state[key].float() for state in self.states], dim)
        for state, own in zip(self.states, together.unbind(dim), strict=True):
            state[key] = own
        return together

    # --- the step -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, group: Group) -> None:
        """Take a step by the parameters' gradients, as the group says."""
        grads = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        self.count += 1
        fused = group["fused"] and not self.must_not_wait(group) and self._is_plain(grads)
        if self.capped and fused:
            self._fused_step_under_cap(group, grads)
        elif self.capped:
            self._step_under_cap(group, grads)
        elif fused:
            self._fused(group, self.parameters, grads, group["weight_decay"])
        else:
            torch._foreach_mul_(self.parameters, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(self.parameters, self._steps(group, grads))

    def _step_under_cap(self, group: Group, grads: list[Tensor]) -> None:
        steps = self._steps(group, grads)
        updates = gathered([step.float() for step in self._matrices(group, steps)])
        factors = self._factors(group, updates, self._matrices(group, self.parameters))
        # A factor of exactly 1 changes no bit: uncapped matrices move as under AdamW, and nobody waits to know which.
        factors = factors.view(len(steps), -1).to(steps[0].dtype)
        shrinks = (1 - group["lr"] * group["weight_decay"] * factors.double()).to(factors.dtype)
        torch._foreach_mul_(self.parameters, [_along_rows(s, p) for s, p in zip(shrinks, steps, strict=True)])
        along = [_along_rows(f, p) for f, p in zip(factors, steps, strict=True)]
        torch._foreach_addcmul_(self.parameters, steps, along)

    def _fused_step_under_cap(self, group: Group, grads: list[Tensor]) -> None:
        """The same with fewer passes over memory: with decay λ, a step is the share lr·λ of the way from W to −u/λ.

        Where −u/λ is out of range, weights decay first and then move by −u.
        """
        decay, lr, is_narrow = group["weight_decay"], group["lr"], grads[0].dtype == torch.float16
        is_reachable = decay >= LEAST_DECAY and not is_narrow
        # Half precision holds no more than 65504, which u alone may exceed where gradients are small: −lr·u there.
        length = 1 / decay if is_reachable else lr if is_narrow else 1.0
        # As the kernel moves weights that stand at zero.
        aims = grads[0].new_zeros(len(grads), *grads[0].shape)
        self._fused(group | {"lr": length}, list(aims.unbind()), grads, decay=0.0)
        weights = self._matrices(group, self.parameters)
        aims = aims.view(len(weights), *weights[0].shape)
        share = lr * decay if is_reachable else 1.0 if is_narrow else lr
        factors = self._factors(group, [aims.float()], weights, share)
        shares = (factors * share).tolist()
        if is_reachable:
            torch._foreach_lerp_(weights, list(aims.unbind()), shares)
            return
        if decay:
            torch._foreach_mul_(weights, (1 - lr * decay * factors.double()).tolist())
        torch._foreach_add_(weights, torch._foreach_mul(list(aims.unbind()), shares))

    @staticmethod
    def _matrices(group: Group, tensors: list[Tensor]) -> list[Tensor]:
        """Tensors of one shape ``(out, ...)`` as matrices ``(out / splits, -1)``, ``splits`` of each."""
        splits, shape = group["splits"], tensors[0].shape
        if splits == 1 and len(shape) == 2:
            return tensors
        size = splits, shape[0] // splits, math.prod(shape[1:])
        return [part for tensor in tensors for part in tensor.reshape(size).unbind()]

    def _is_plain(self, grads: list[Tensor]) -> bool:
        """Whether everything lies in memory as its shape says: torch's kernel sees only the memory."""
        return all(x.is_contiguous() for x in (*self.parameters, *grads, *self.means, *self.squares))

    def _fused(self, group: Group, targets: list[Tensor], grads: list[Tensor], decay: float) -> None:
        """Let the kernel of torch's ``AdamW(fused=True)`` move ``targets``."""
        beta1, beta2 = group["betas"]
        rates = {"lr": group["lr"], "beta1": beta1, "beta2": beta2, "weight_decay": decay, "eps": group["eps"]}
        how = {"amsgrad": False, "maximize": group["maximize"]}
        torch._fused_adamw_(targets, grads, self.means, self.squares, [], [self.count] * len(grads), **rates, **how)

    def _steps(self, group: Group, grads: list[Tensor]) -> list[Tensor]:
        """AdamW's steps −lr·u, rounded as torch's own AdamW rounds them."""
        beta1, beta2 = group["betas"]
        if group["maximize"]:
            grads = list(torch._foreach_neg(grads))
        torch._foreach_lerp_(self.means, grads, 1 - beta1)
        torch._foreach_mul_(self.squares, beta2)
        torch._foreach_addcmul_(self.squares, grads, grads, 1 - beta2)
        roots = torch._foreach_sqrt(self.squares)
        if group["capturable"]:
            torch._foreach_div_(roots, (1 - beta2**self.count).sqrt())
            torch._foreach_add_(roots, group["eps"])
            torch._foreach_div_(roots, -group["lr"] / (1 - beta1**self.count))
            return list(torch._foreach_div(self.means, roots))
        count = self.count.item()
        torch._foreach_div_(roots, (1 - beta2**count) ** 0.5)
        torch._foreach_add_(roots, group["eps"])
        # As AdamW's addcdiv rounds; adding to minus zero changes nothing, not even the sign of a zero. In the roots'
        # place: on a CPU, the fewer bytes, the more of them are in the cache for the products.
        zero = torch.full((), -0.0, dtype=roots[0].dtype, device=roots[0].device)
        for mean, root in zip(self.means, roots, strict=True):
            torch.addcdiv(zero, mean, root, value=-group["lr"] / (1 - beta1**count), out=root)
        return list(roots)

    # --- the cap --------------------------------------------------------------------------------------------------

    def _factors(self, group: Group, updates: Matrices, weights: list[Tensor], share: float | Tensor = 1.0) -> Tensor:
        """What to multiply the step of each matrix by, at most 1, where steps are a ``share`` of the updates."""
        moves = self._estimate(group, updates, gathered([weight.float() for weight in weights]), share)
        self.ratios[:] = torch.where(self.sizes > 0, moves / self.sizes, 0)
        return (group["tau"] / self.ratios).clamp(max=1)

    def _estimate(self, group: Group, updates: Matrices, weights: Matrices, share: float | Tensor) -> Tensor:
        """σ₁ of the steps; the kept σ₁ of weights and all vectors are brought up to date.

        Both take an iteration together, for half the small operations; updates then more, where they need them.
        """
        norms = self._small_norms(group, updates, share)
        if norms is not None:
            self.sizes[:], _, vectors = iterate(weights, self.vectors[1])
            if (norms <= group["tau"] * self.sizes).all():  # then σ₁, smaller still, need not be known
                self.vectors[1] = orthonormal(vectors)
                for state in self.states:
                    state["estimates"] = 0  # the kept vectors of updates grow old
                return norms
        values, gains, vectors = iterate([*updates, *weights], self.vectors.flatten(0, 1))
        count = len(self.sizes)
        moves, gain = values[:count], gains[:count]
        self.sizes[:] = values[count:]
        may_settle, enough = not self.must_not_wait(group), 1 + SETTLED / group["power_iterations"] ** 2
        for _ in range(self._iterations(group) - 1):
            if may_settle and (gain <= enough).all():
                break
            moves, gain, vectors[:count] = iterate(updates, orthonormal(vectors[:count]))
        if vectors.shape[1] > 2:  # W grows fastest where the step is largest: there its weakest vector looks next
            vectors[count:, 0] = vectors[:count, -1]
        self.vectors.flatten(0, 1)[:] = orthonormal(vectors)
        return moves * share

    def _small_norms(self, group: Group, updates: Matrices, share: float | Tensor) -> Tensor | None:
        """Frobenius norms of the steps where they all clear the cap by the last known σ₁(W); None elsewhere.

        Asked on CPUs only, and where the last step's ratios leave a hope.
        """
        tau = group["tau"]
        if self.must_not_wait(group) or math.isinf(tau) or self.ratios.max() > tau:
            return None
        norms = torch.cat([torch.linalg.vector_norm(piece, dim=(1, 2)) for piece in updates]) * share
        return norms if (norms <= tau * self.sizes).all() else None

    def _iterations(self, group: Group) -> int:
        wanted: int = group["power_iterations"]
        if group["capturable"]:
            return wanted
        for state in self.states:
            state["estimates"] += 1
        return max(wanted, math.ceil(EARLY_ITERATIONS / min(state["estimates"] for state in self.states)))

    def must_not_wait(self, group: Group) -> bool:
        """Whether no number is to be looked at: a GPU would have to be waited for, and a graph has no branches."""
        return group["capturable"] or self.parameters[0].device.type != "cpu"


def is_capped(group: Group, parameter: Tensor) -> bool:
    """Whether a parameter of a group counts as one or more matrices under a cap."""
    return bool(group["cap"]) and parameter.ndim >= 2 and parameter.numel() > 0


def _along_rows(factors: Tensor, parameter: Tensor) -> Tensor:
    """One factor for each of ``(splits,)`` parts of a parameter, shaped to multiply it."""
    if len(factors) == 1:
        return factors[0]
    rows = factors.repeat_interleave(parameter.shape[0] // len(factors))
    return rows.view(-1, *[1] * (parameter.ndim - 1))
