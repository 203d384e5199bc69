"""AdamW²: AdamW whose step on a weight matrix is short beside the matrix itself (Qi et al., ICLR 2025)."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from optim.power_iteration import converge, gathered, iterate, orthonormal, start_blocks, vectors_for

# Updates of the first steps have little in common with the ones before: kept vectors are far off, and need more
# iterations. The n-th estimate in a row takes at least EARLY_ITERATIONS / n.
EARLY_ITERATIONS = 20
# On a CPU, iterations end once one of them raises no value by more than this share over the square of their number: who
# asks for more wants to know it more exactly.
SETTLED = 0.1
# Bytes of parameters that step together on a CPU, so that what one operation wrote is in the cache for the next.
CPU_BUNDLE = 2**22

State = dict[str, Any]
Group = dict[str, Any]


@dataclass(frozen=True)
class CapReport:
    """What the cap did in the last step.

    Attributes:
        share: of the matrices, capped ones.
        smallest: least factor of any matrix's learning rate, 1 where none was capped.
        median: factor of the median matrix.
        ratios: lr·σ₁(u)/σ₁(W) before the cap: of the median matrix, its 99th percentile over matrices, and the largest.
            Where the Frobenius norm of u clears the cap (asked on CPUs only), that stands for σ₁(u).
        hardest: name of the matrix with the largest, where the optimizer was given names.
    """

    share: float
    smallest: float
    median: float
    ratios: tuple[float, float, float]
    hardest: str | None


class AdamW2(Optimizer):
    """AdamW that never lets a step change a weight matrix's largest singular value by much.

    With u = m̂ / (√v̂ + ε), the learning rate of a matrix W becomes α = min(lr, τ·σ₁(W)/σ₁(u)), for its decoupled
    weight decay, too. By Weyl's inequality a step then grows σ₁(W) by a factor of at most 1 + τ, so that full learning
    rate from the first step cannot blow a matrix up (Algorithm 1 of the paper). Both σ₁ come from power iteration with
    vectors that are kept between steps. Vectors (biases, gains) take AdamW's step, and so does a matrix of zeros.

    A group may say ``cap=False`` (tables and tokens, which are no linear maps) and ``splits=k`` (k matrices on top of
    one another, as in a fused qkv, each with a cap of its own). Tensors of more dimensions count as ``(out, -1)``.

    Args:
        params: parameters, named parameters or groups of them.
        lr: learning rate; a tensor where ``capturable``.
        betas: decay of the means of gradient and squared gradient.
        eps: added to the root of the second.
        weight_decay: decoupled, multiplied by the learning rate.
        tau: most that a step may grow σ₁, relatively; infinity: AdamW's own step, with the ratios measured still.
        power_iterations: for σ₁(u) in each step; the first steps take more.
        foreach: whether all matrices of a shape step together. None: on GPUs; on CPUs as many as fit its caches.
        maximize: climb instead of descending.
        capturable: keep step numbers on the device, for CUDA graphs and ``torch.compile``; every step then takes
            ``power_iterations``.
        fused: whether to compute u with the kernel of torch's ``AdamW(fused=True)``, three times faster on CPUs. Its
            roots are rounded otherwise than those of torch's default, whose bits an infinite tau gives without it.
            Elsewhere than on CPUs, or where ``capturable``, it says nothing.

    Raises:
        ValueError: for a number out of range, or splits that do not divide a matrix.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.05,
        tau: float = 0.03,
        power_iterations: int = 3,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        fused: bool | None = None,
    ):
        if isinstance(lr, Tensor) and not capturable:
            raise ValueError("a tensor as lr needs capturable=True")
        limits = {"lr": lr, "eps": eps, "weight_decay": weight_decay}
        for name, value in limits.items():
            if not isinstance(value, Tensor) and not value >= 0:
                raise ValueError(f"{name}={value} must be 0 or more")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas={betas} must be at least 0 and less than 1")
        if not tau > 0:
            raise ValueError(f"tau={tau} must be more than 0")
        if power_iterations < 1:
            raise ValueError(f"power_iterations={power_iterations} must be 1 or more")
        defaults = {
            **{"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "tau": tau},
            **{"power_iterations": power_iterations, "cap": True, "splits": 1},
            **{"foreach": foreach, "maximize": maximize, "capturable": capturable, "fused": fused},
        }
        super().__init__(params, defaults)

    # --- what is kept ---------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: Group) -> None:
        """Add a group; its matrices' singular vectors are found here, once."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for parameter in group["params"]:
            if parameter.is_complex():
                raise ValueError("AdamW2 takes no complex parameters")
            if _is_capped(group, parameter):
                self._track(group, parameter)

    @torch.no_grad()
    def _track(self, group: Group, parameter: Tensor) -> None:
        """Begin to estimate the largest singular values of a matrix and its updates."""
        if parameter.shape[0] % group["splits"]:
            raise ValueError(f"splits={group['splits']} does not divide the {parameter.shape[0]} rows of a matrix")
        matrices = gathered(_parts([parameter], group["splits"]))
        sizes, vectors = converge(matrices)
        kept = vectors_for(matrices, group["capturable"])
        self.state[parameter] |= {
            "weight_size": sizes,  # σ₁(W) before the last step
            "vectors": torch.stack([start_blocks(matrices, kept), vectors[:, :kept]]),  # of the update and of W
            "ratio": torch.zeros(len(matrices), device=parameter.device),
            "estimates": 0,  # of σ₁(u) in a row
        }

    def _begin(self, group: Group, parameter: Tensor) -> State:
        """The state of a parameter, made at its first step."""
        state = self.state[parameter]
        if "step" not in state:
            device = parameter.device if group["capturable"] else "cpu"
            state["step"] = torch.zeros((), device=device)
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state.

        Raises:
            ValueError: if it is another optimizer's.
        """
        if not all({"tau", "cap", "splits"} <= group.keys() for group in state_dict["param_groups"]):
            raise ValueError("the state is of another optimizer than AdamW2, which keeps singular vectors beside it")
        super().load_state_dict(state_dict)

    # --- the step -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take a step; the loss of ``closure``, where one is given, which computes the gradients anew."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameters in self._bundles(group):
                self._update(group, parameters)
        return loss

    def _bundles(self, group: Group) -> list[list[Tensor]]:
        """The group's parameters that have gradients, in lists that step together: of one shape if they are capped."""
        buckets: dict[tuple[Any, ...], list[Tensor]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            if parameter.grad.is_sparse:
                raise RuntimeError("AdamW2 takes no sparse gradients")
            state = self._begin(group, parameter)
            age = None if group["capturable"] else state["step"].item()
            shape = parameter.shape if _is_capped(group, parameter) else None
            buckets[parameter.device, parameter.dtype, age, shape].append(parameter)
        return [piece for bucket in buckets.values() for piece in _cut(bucket, group["foreach"])]

    def _update(self, group: Group, parameters: list[Tensor]) -> None:
        steps = self._plain_steps(group, parameters)
        lr, decay = group["lr"], group["weight_decay"]
        if not _is_capped(group, parameters[0]):
            torch._foreach_mul_(parameters, 1 - lr * decay)
            torch._foreach_add_(parameters, steps)
            return
        # A factor of exactly 1 changes no bit: uncapped matrices move as under AdamW, and nobody waits to know which.
        factors = self._factors(group, parameters, steps)
        shrinks = (1 - lr * decay * factors.double()).to(factors.dtype)
        torch._foreach_mul_(parameters, [_along_rows(s, p) for s, p in zip(shrinks, parameters, strict=True)])
        along = [_along_rows(f, p) for f, p in zip(factors, parameters, strict=True)]
        torch._foreach_addcmul_(parameters, steps, along)

    def _plain_steps(self, group: Group, parameters: list[Tensor]) -> list[Tensor]:
        """AdamW's steps −lr·u, rounded as torch's own AdamW rounds them."""
        states = [self.state[parameter] for parameter in parameters]
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        counts, means, squares = ([state[key] for state in states] for key in ("step", "exp_avg", "exp_avg_sq"))
        beta1, beta2 = group["betas"]
        if group["fused"] and not _must_not_wait(group, parameters[0]):
            # Weights that stood at zero, side by side in memory: matrices of one shape are one tensor without a copy.
            zeros = torch.zeros(sum(map(torch.numel, parameters)), dtype=parameters[0].dtype)
            pieces = zeros.split([parameter.numel() for parameter in parameters])
            steps = [piece.view(parameter.shape) for piece, parameter in zip(pieces, parameters, strict=True)]
            rates = {"beta1": beta1, "beta2": beta2, "lr": group["lr"], "weight_decay": 0.0, "eps": group["eps"]}
            how = {"fused": True, "amsgrad": False, "maximize": group["maximize"]}
            adamw(steps, grads, means, squares, [], counts, **how, **rates)
            return steps
        if group["maximize"]:
            grads = list(torch._foreach_neg(grads))
        torch._foreach_add_(counts, 1)
        torch._foreach_lerp_(means, grads, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
        roots = torch._foreach_sqrt(squares)
        if group["capturable"]:
            torch._foreach_div_(roots, [(1 - beta2**count).sqrt() for count in counts])
            torch._foreach_add_(roots, group["eps"])
            torch._foreach_div_(roots, [-group["lr"] / (1 - beta1**count) for count in counts])
            return list(torch._foreach_div(means, roots))
        count = counts[0].item()
        torch._foreach_div_(roots, (1 - beta2**count) ** 0.5)
        torch._foreach_add_(roots, group["eps"])
        # As AdamW's addcdiv rounds; adding to minus zero changes nothing, not even the sign of a zero. In the roots'
        # place: on a CPU, the fewer bytes, the more of them are in the cache for the products.
        zero = torch.full((), -0.0, dtype=roots[0].dtype, device=roots[0].device)
        for mean, root in zip(means, roots, strict=True):
            torch.addcdiv(zero, mean, root, value=-group["lr"] / (1 - beta1**count), out=root)
        return list(roots)

    def _factors(self, group: Group, parameters: list[Tensor], steps: list[Tensor]) -> Tensor:
        """What to multiply each matrix's step by, at most 1: ``(parameters, splits)``."""
        states = [self.state[parameter] for parameter in parameters]
        moves, sizes = self._sizes(group, states, _parts(steps, group["splits"]), _parts(parameters, group["splits"]))
        ratios = torch.where(sizes > 0, moves / sizes, 0)
        _keep(states, "weight_size", sizes)
        _keep(states, "ratio", ratios)
        factors = (group["tau"] / ratios).clamp(max=1)
        return factors.view(len(states), -1).to(parameters[0].dtype)

    def _sizes(
        self, group: Group, states: list[State], updates: list[Tensor], weights: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """σ₁ of updates and of weights, the vectors in their states brought up to date.

        Both take an iteration together, for half the small operations; updates then more, where they need them.
        """
        kept = torch.stack([state["vectors"] for state in states], dim=1).float()
        count = len(updates)
        norms = self._small_norms(group, states, updates)
        if norms is not None:
            sizes, _, vectors = iterate(gathered(weights), kept[1].flatten(0, 1))
            if (norms <= group["tau"] * sizes).all():  # then σ₁, smaller still, need not be known
                for state in states:
                    state["estimates"] = 0  # the kept vectors of updates grow old
                _keep(states, "vectors", torch.cat([kept[0].flatten(0, 1), orthonormal(vectors)]), dim=1)
                return norms, sizes
        both = gathered(updates + weights)
        values, gains, vectors = iterate(both, kept.flatten(0, 2))
        moves, sizes = values.split(count)
        gain, of_updates, of_weights = gains[:count], vectors[:count], vectors[count:]
        may_settle, enough = not _must_not_wait(group, kept), 1 + SETTLED / group["power_iterations"] ** 2
        for _ in range(self._iterations(group, states) - 1):
            if may_settle and (gain <= enough).all():
                break
            moves, gain, of_updates = iterate(both[:count], orthonormal(of_updates))
        if kept.shape[3] > 2:  # W grows fastest where the step is largest: there W's last vector looks next
            of_weights[:, -1] = of_updates[:, 0]
        _keep(states, "vectors", orthonormal(torch.cat([of_updates, of_weights])), dim=1)
        return moves, sizes

    @staticmethod
    def _small_norms(group: Group, states: list[State], updates: list[Tensor]) -> Tensor | None:
        """Frobenius norms of the updates where they all clear the cap by the last known σ₁(W); None elsewhere.

        Asked on CPUs only, and where the last step's ratios leave a hope.
        """
        sizes, ratios = _gathered(states, "weight_size"), _gathered(states, "ratio")
        if _must_not_wait(group, sizes) or math.isinf(group["tau"]) or (ratios > group["tau"]).any():
            return None
        norms = torch.stack(torch._foreach_norm(updates))
        return norms if (norms <= group["tau"] * sizes).all() else None

    def _iterations(self, group: Group, states: list[State]) -> int:
        wanted: int = group["power_iterations"]
        if group["capturable"]:
            return wanted
        for state in states:
            state["estimates"] += 1
        return max(wanted, math.ceil(EARLY_ITERATIONS / min(state["estimates"] for state in states)))

    # --- what it did ----------------------------------------------------------------------------------------------

    def cap_report(self) -> CapReport | None:
        """What the cap did in the last step; None without matrices. It waits for the device."""
        ratios, taus, names = [], [], []
        for group in self.param_groups:
            labels = group.get("param_names") or [None] * len(group["params"])
            for parameter, name in zip(group["params"], labels, strict=True):
                if _is_capped(group, parameter):
                    ratio = self.state[parameter]["ratio"]
                    ratios.append(ratio)
                    taus.append(torch.full_like(ratio, group["tau"]))
                    names += [name] * len(ratio)
        if not ratios:
            return None
        ratio = torch.cat(ratios).cpu()
        factors = (torch.cat(taus).cpu() / ratio).clamp(max=1)
        hardest = int(ratio.argmax())
        median, high = ratio.quantile(torch.tensor([0.5, 0.99])).tolist()
        return CapReport(
            share=(factors < 1).double().mean().item(),
            smallest=factors.min().item(),
            median=factors.median().item(),
            ratios=(median, high, ratio[hardest].item()),
            hardest=names[hardest],
        )


def _must_not_wait(group: Group, tensor: Tensor) -> bool:
    """Whether a number is not to be looked at: a GPU would have to be waited for, and a graph has no branches."""
    return group["capturable"] or tensor.device.type != "cpu"


def _is_capped(group: Group, parameter: Tensor) -> bool:
    return group["cap"] and parameter.ndim >= 2


def _parts(tensors: list[Tensor], splits: int) -> list[Tensor]:
    """Tensors of one shape ``(out, ...)`` as ``len · splits`` matrices of shape ``(out / splits, -1)`` in float32."""
    rows = len(tensors[0]) // splits
    return [part.float() for tensor in tensors for part in tensor.reshape(splits, rows, -1)]


def _gathered(states: list[State], key: str) -> Tensor:
    """What is kept for each matrix, of all parameters."""
    return torch.cat([state[key] for state in states]).float()


def _keep(states: list[State], key: str, values: Tensor, dim: int = 0) -> None:
    """Put values of all parameters, in their order along ``dim``, into what is kept of each, in place."""
    kept = [state[key] for state in states]
    shape = kept[0].shape
    torch._foreach_copy_(kept, list(values.view(*shape[:dim], len(states), *shape[dim:]).unbind(dim)))


def _along_rows(factors: Tensor, parameter: Tensor) -> Tensor:
    """One factor for each of ``(splits,)`` parts of a parameter, shaped to multiply it."""
    if len(factors) == 1:
        return factors[0]
    rows = factors.repeat_interleave(parameter.shape[0] // len(factors))
    return rows.view(-1, *[1] * (parameter.ndim - 1))


def _cut(parameters: list[Tensor], foreach: bool | None) -> list[list[Tensor]]:
    """A list in pieces that step together."""
    if foreach or (foreach is None and parameters[0].device.type != "cpu"):
        return [parameters]
    pieces: list[list[Tensor]] = []
    room = 0
    for parameter in parameters:
        if room <= 0 or foreach is False:
            pieces.append([])
            room = CPU_BUNDLE
        pieces[-1].append(parameter)
        room -= parameter.nbytes
    return pieces
