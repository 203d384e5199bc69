"""AdamW²: AdamW whose step on a weight matrix is short beside the matrix itself (Qi et al., ICLR 2025)."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from optim.bundle import Bundle, Group, State, is_capped
from optim.power_iteration import converge, start_blocks, vectors_for
from threads import share_out

# Bytes of parameters that step together on a CPU, so that what one operation wrote is in the cache for the next.
CPU_BUNDLE = 2**22


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
        defaults = {
            **{"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "tau": tau},
            **{"power_iterations": power_iterations, "cap": True, "splits": 1},
            **{"foreach": foreach, "maximize": maximize, "capturable": capturable, "fused": fused},
        }
        _check(defaults)
        self._last_bundles: dict[int, tuple[list[Tensor], list[Bundle]]] = {}
        super().__init__(params, defaults)

    # --- what is kept ---------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: Group) -> None:
        """Add a group; its matrices' singular vectors are found here, once, or at the first step of those on meta.

        Raises:
            ValueError: for an option out of range, or splits that do not divide a matrix. The group is not added then.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            _check(group)
        except ValueError:
            self.param_groups.pop()
            raise
        for parameter in group["params"]:
            if is_capped(group, parameter) and not parameter.is_meta:
                self._track(group, parameter)

    @torch.no_grad()
    def _track(self, group: Group, parameter: Tensor) -> None:
        """Begin to estimate the largest singular values of a matrix and its updates."""
        matrices = parameter.detach().reshape(group["splits"], len(parameter) // group["splits"], -1).float()
        sizes, vectors = converge([matrices])
        kept = vectors_for(matrices, group["capturable"])
        self.state[parameter] |= {
            "weight_size": sizes,  # σ₁(W) before the last step
            "vectors": torch.stack([start_blocks([matrices], kept), vectors[:, -kept:]]),  # of the update and of W
            "ratio": torch.zeros_like(sizes),
            "estimates": 0,  # of σ₁(u) in a row
        }

    def _begin(self, group: Group, parameter: Tensor) -> State:
        """The state of a parameter, made at its first step, or anew where somebody cleared it."""
        if is_capped(group, parameter) and "vectors" not in self.state[parameter]:
            self._track(group, parameter)
        state = self.state[parameter]
        if "step" not in state:
            device = parameter.device if group["capturable"] else "cpu"
            state["step"] = torch.zeros((), device=device)
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Options that are younger than a state get their defaults."""
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
        for kept in self.state.values():
            if "step" in kept:  # plain numbers in files of old torch
                kept["step"] = torch.as_tensor(kept["step"], dtype=torch.float32)
        self._last_bundles = {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state.

        Raises:
            ValueError: if it is another optimizer's.
        """
        with self.register_load_state_dict_pre_hook(_refuse_another_s):  # after those that may translate it
            super().load_state_dict(state_dict)

    # --- the step -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take a step; the loss of ``closure``, where one is given, which computes the gradients anew."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        bundles = [(b, group) for i, group in enumerate(self.param_groups) for b in self._bundles(i, group)]
        if any(bundle.must_not_wait(group) for bundle, group in bundles):
            for bundle, group in bundles:
                bundle.step(group)
        else:  # the largest first, so that no thread begins one when the others are done
            bundles.sort(key=lambda item: -item[0].size)
            share_out(lambda item: item[0].step(item[1]), bundles)
        return loss

    def _bundles(self, index: int, group: Group) -> list[Bundle]:
        """The group's parameters that have gradients, in the bundles of the step before if they are the same ones."""
        present = [parameter for parameter in group["params"] if parameter.grad is not None]
        if any(parameter.grad.is_sparse for parameter in present):
            raise RuntimeError("AdamW2 takes no sparse gradients")
        before, bundles = self._last_bundles.get(index, ([], []))
        are_same = len(before) == len(present) and all(a is b for a, b in zip(before, present, strict=True))
        if not are_same or not all(bundle.holds(self.state) for bundle in bundles):
            bundles = self._bundled(group, present)
            self._last_bundles[index] = present, bundles
        return bundles

    def _bundled(self, group: Group, parameters: list[Tensor]) -> list[Bundle]:
        buckets: dict[tuple[Any, ...], list[Tensor]] = defaultdict(list)
        for parameter in parameters:
            state = self._begin(group, parameter)
            age = state["step"].item()
            shape = parameter.shape if is_capped(group, parameter) else None
            buckets[parameter.device, parameter.dtype, age, shape].append(parameter)
        pieces = [piece for bucket in buckets.values() for piece in _cut(bucket, group["foreach"])]
        return [Bundle(group, piece, [self.state[parameter] for parameter in piece]) for piece in pieces]

    # --- what it did ----------------------------------------------------------------------------------------------

    def metrics(self) -> dict[str, Any]:
        """What the cap did in the last step, for a line of metrics; empty without matrices."""
        report = self.cap_report()
        if report is None:
            return {}
        return {
            "capped": report.share,
            "lr_factor_min": report.smallest,
            "lr_factor_median": report.median,
            **dict(zip(("step_ratio_median", "step_ratio_p99", "step_ratio_max"), report.ratios, strict=True)),
            "step_ratio_max_of": report.hardest,
        }

    def cap_report(self) -> CapReport | None:
        """What the cap did in the last step; None without matrices. It waits for the device."""
        ratios, taus, names = [], [], []
        for group in self.param_groups:
            labels = group.get("param_names") or [None] * len(group["params"])
            for parameter, name in zip(group["params"], labels, strict=True):
                if is_capped(group, parameter) and "ratio" in self.state.get(parameter, {}):
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


def _check(options: Group) -> None:
    """Refuse what no step can be taken with, in a group or in the defaults."""
    lr, betas, splits, parameters = options["lr"], options["betas"], options["splits"], options.get("params", [])
    if isinstance(lr, Tensor) and not (options["capturable"] and lr.numel() == 1):
        raise ValueError("lr as a tensor needs capturable=True and must be a single number")
    for name in ("lr", "eps", "weight_decay"):
        if not options[name] >= 0:
            raise ValueError(f"{name}={options[name]} must be 0 or more")
    if any(isinstance(beta, Tensor) for beta in betas) or len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas={betas} must be two numbers of at least 0 and less than 1")
    if not options["tau"] > 0:
        raise ValueError(f"tau={options['tau']} must be more than 0")
    for name in ("power_iterations", "splits"):
        if not isinstance(options[name], int) or options[name] < 1:
            raise ValueError(f"{name}={options[name]} must be 1 or more, and a whole number")
    for parameter in parameters:
        if parameter.is_complex():
            raise ValueError("AdamW2 takes no complex parameters")
        if is_capped(options, parameter) and len(parameter) % splits:
            raise ValueError(f"splits={splits} does not divide the {len(parameter)} rows of a matrix")


def _refuse_another_s(_: Optimizer, state_dict: dict[str, Any]) -> None:
    """Raise an error for another optimizer's state."""
    if not all({"tau", "cap", "splits"} <= group.keys() for group in state_dict["param_groups"]):
        raise ValueError("the state is of another optimizer than AdamW2, which keeps singular vectors beside it")


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
