"""AdamW² (Qi et al., ICLR 2025): AdamW that limits the size of each step relative to the weight matrix it changes."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from optim.adamw2_checks import check, refuse_other_state
from optim.adamw2_stacks import Group, Stack, unstacked
from optim.power_iteration import iterate, start_vectors

FIRST_ITERATIONS = 12  # power iterations in a step where some matrix has new vectors


class AdamW2(Optimizer):
    """AdamW that limits how much a step can grow a weight matrix's largest singular value σ₁.

    With u = m̂ / (√v̂ + ε), the learning rate of a matrix W is α = min(lr, τ·σ₁(W)/σ₁(u)). Its decoupled weight decay
    uses α, too. By Weyl's inequality a step then grows σ₁(W) by a factor of at most 1 + τ. So the full learning rate
    from the first step cannot make a matrix explode (Algorithm 1 of the paper). Power iteration estimates σ₁(W) and
    σ₁(u), with vectors that are kept between steps. One-dimensional parameters (biases, gains) and matrices of zeros
    take AdamW's step.

    A group may set ``cap=False`` for parameters that are not linear maps, such as tables and tokens. It may set
    ``splits=k`` if each parameter is k matrices on top of each other, such as a fused qkv; then each of the k matrices
    has its own cap. A tensor with more than two dimensions counts as a matrix ``(out, -1)``.

    A step reads no number back to the host. So it does not wait for a GPU, and can be captured in a CUDA graph. torch's
    own ``AdamW(fused=True)`` kernel updates the moments. Under a gradient scaler, too, a step that overflows is skipped
    on the device. Only a step with new matrices waits then: if it is skipped, the next one is still their first.

    Args:
        params: parameters, named parameters or groups of them.
        lr: learning rate; a tensor with one element for CUDA graphs.
        betas: decay rates of the moving averages of the gradient and of its square.
        eps: added to the square root of the second average.
        weight_decay: decoupled weight decay, multiplied by the learning rate.
        tau: largest relative growth of σ₁ in a step. Infinity gives plain AdamW, which measures nothing.
        power_iterations: power iterations in each step; the largest number of all groups counts. Steps with new
            matrices take more.

    Raises:
        ValueError: if a number is out of range, or ``splits`` does not divide the rows of a matrix.
    """

    # torch's GradScaler then sets the tensors found_inf and grad_scale for each step instead of reading found_inf.
    _step_supports_amp_scaling = True
    supports_cuda_graphs = True  # for optim.graphed

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.05,
        tau: float = 0.03,
        power_iterations: int = 1,
    ):
        numbers = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "tau": tau}
        defaults = numbers | {"power_iterations": power_iterations, "cap": True, "splits": 1}
        check(defaults)
        super().__init__(params, defaults)

    # --- Algorithm 1 ----------------------------------------------------------------------------------------------

    @torch.compiler.disable  # with torch 2.14, compiled steps gave the fused kernel a wrong gradient
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take a step. If ``closure`` is given, it computes the gradients first, and its loss is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        trained = [(group, p) for group in self.param_groups for p in group["params"] if p.grad is not None]
        new = [each for each in trained if self._lacks_state(*each)]
        has_new_matrices = any(_is_capped(*each) for each in new)
        if has_new_matrices and found_inf is not None and found_inf.item():
            return loss
        for each in new:
            self._begin(*each)
        stacks: dict[torch.device, list[Stack]] = defaultdict(list)
        for group in self.param_groups:
            members = [p for p in group["params"] if p.grad is not None]
            uncapped = [p for p in members if not _is_capped(group, p)]
            self._adamw(group, uncapped, uncapped, group["weight_decay"])
            for stack in self._proposals(group, [p for p in members if _is_capped(group, p)]):
                stacks[stack.pairs.device].append(stack)
        for device, on_device in stacks.items():
            is_skipped = found_inf.to(device, non_blocking=True) > 0 if found_inf is not None else None
            iterations = max(stack.group["power_iterations"] for stack in on_device)
            self._measure(on_device, max(iterations, FIRST_ITERATIONS) if has_new_matrices else iterations, is_skipped)
            for _, of_group in groupby(on_device, key=lambda stack: id(stack.group)):
                self._move(list(of_group), is_skipped)
        return loss

    def _adamw(self, group: Group, parameters: list[Tensor], targets: list[Tensor], decay: float) -> None:
        """Apply torch's fused AdamW step of ``parameters`` to ``targets``, with weight decay ``decay``.

        The kernel ignores strides and reads memory in order. Tensors that are not contiguous are therefore copied.
        """
        states = [self.state[parameter] for parameter in parameters]
        dense = [target.contiguous() for target in targets]
        adamw(
            dense,
            [parameter.grad.contiguous() for parameter in parameters if parameter.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            maximize=False,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            eps=group["eps"],
            weight_decay=decay,
            grad_scale=getattr(self, "grad_scale", None),
            found_inf=getattr(self, "found_inf", None),
        )
        for target, moved in zip(targets, dense, strict=True):
            if target is not moved:
                target.copy_(moved)

    def _proposals(self, group: Group, capped: list[Tensor]) -> list[Stack]:
        """Compute AdamW's step −lr·u of the capped parameters of a group by applying the kernel to zeros.

        The parameters do not change. Those of one shape, dtype and device become a stack.
        """
        if not capped:
            return []
        kinds: dict[Any, list[Tensor]] = defaultdict(list)
        for parameter in capped:
            kinds[parameter.device, parameter.dtype, parameter.shape].append(parameter)
        stacks = [Stack(group, alike, alike[0].new_empty(len(alike), 2, *alike[0].shape)) for alike in kinds.values()]
        parameters, steps, weights = unstacked(stacks)
        torch._foreach_zero_(steps)
        torch._foreach_copy_(weights, parameters)
        self._adamw(group, parameters, steps, decay=0.0)
        return stacks

    def _measure(self, stacks: list[Stack], iterations: int, is_skipped: Tensor | None) -> None:
        """Estimate σ₁ of all steps and weights. Store it, and the vectors for the next step's estimate."""

        def load(key: str) -> list[Tensor]:
            """For each stack, what its states hold, ``(matrices, …)``."""
            return [torch.stack([self.state[p][key] for p in stack.parameters]).flatten(0, 2) for stack in stacks]

        def store(key: str, found: list[Tensor]) -> None:
            if is_skipped is not None:
                found = [torch.where(is_skipped, old, new) for old, new in zip(load(key), found, strict=True)]
            shaped = [f.view(*s.matrices.shape[:3], *f.shape[1:]) for f, s in zip(found, stacks, strict=True)]
            states = [self.state[parameter] for stack in stacks for parameter in stack.parameters]
            torch._foreach_copy_([state[key] for state in states], [new for f in shaped for new in f.unbind()])

        matrices = [stack.matrices.flatten(0, 2).float() for stack in stacks]
        vectors = load("vectors")
        for _ in range(iterations):
            sizes, vectors = iterate(matrices, vectors)
        store("sizes", sizes)
        store("vectors", vectors)

    def _move(self, stacks: list[Stack], is_skipped: Tensor | None) -> None:
        """Scale the step of each matrix of a group down to the cap, or to zero if it is skipped, and apply it."""
        group = stacks[0].group
        parameters, _, moved = unstacked(stacks)
        step_sizes, weight_sizes = torch.stack([self.state[p]["sizes"] for p in parameters]).unbind(1)
        # α / lr. A factor of exactly 1 gives AdamW's own step, so capped and uncapped matrices need no separate code.
        factors = torch.where(weight_sizes > 0, group["tau"] * weight_sizes / step_sizes, 1).clamp(max=1)
        if is_skipped is not None:
            factors = torch.where(is_skipped, 0, factors)
        factors = factors[..., None, None]
        decays = 1 - group["lr"] * group["weight_decay"] * factors
        counts = [len(stack.parameters) for stack in stacks]
        for stack, decay, factor in zip(stacks, decays.split(counts), factors.split(counts), strict=True):
            steps, weights = stack.matrices.unbind(1)
            weights.mul_(decay)
            weights.addcmul_(steps, factor.to(steps.dtype))
        torch._foreach_copy_(parameters, moved)

    # --- state ----------------------------------------------------------------------------------------------------

    def _lacks_state(self, group: Group, parameter: Tensor) -> bool:
        """Whether a parameter has no state yet, or a capped one has no vectors for power iteration."""
        return ("sizes" if _is_capped(group, parameter) else "step") not in self.state.get(parameter, {})

    def _begin(self, group: Group, parameter: Tensor) -> None:
        """Create what a parameter's state lacks, on the parameter's device and with contiguous moments."""
        if parameter.grad is not None and parameter.grad.is_sparse:
            raise RuntimeError("AdamW2 does not support sparse gradients")
        state = self.state[parameter]
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
        if _is_capped(group, parameter):
            splits, columns = group["splits"], parameter[0].numel()
            state["vectors"] = start_vectors(2 * splits, columns, parameter.device).unflatten(0, (2, splits))
            state["sizes"] = torch.zeros(2, splits, dtype=torch.float32, device=parameter.device)  # σ₁ of lr·u and of W

    def add_param_group(self, param_group: Group) -> None:
        """Add a parameter group.

        Raises:
            ValueError: if an option is out of range, or ``splits`` does not divide the rows of a matrix. The group is
                not added then.
        """
        super().add_param_group(param_group)
        try:
            check(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state.

        Raises:
            ValueError: if the state belongs to another optimizer.
        """
        with self.register_load_state_dict_pre_hook(refuse_other_state):  # after hooks that may convert it
            super().load_state_dict(state_dict)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a state as torch does. Options that an old state lacks get their defaults.

        torch converts a loaded state to the parameter's dtype, and does not move step numbers to another device. Here
        everything except the moments becomes float32 on the parameter's device. The fused kernel needs the step number
        there; otherwise each step would wait for a copy. The moments become contiguous, as the kernel needs them.
        """
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
        for parameter, kept in self.state.items():
            for name, value in kept.items():
                if name in ("exp_avg", "exp_avg_sq"):
                    kept[name] = value.contiguous()
                else:
                    kept[name] = torch.as_tensor(value, dtype=torch.float32, device=parameter.device)

    # --- metrics --------------------------------------------------------------------------------------------------

    def metrics(self) -> dict[str, float | str | None]:
        """Return what the cap did in the last step, for a log; empty without matrices. This waits for the device.

        The keys are:

        - ``capped``: the share of the matrices that were capped;
        - ``lr_factor_min``, ``lr_factor_median``: the smallest and the median factor α/lr over the matrices;
        - ``step_ratio_median``, ``step_ratio_p99``, ``step_ratio_max``: the median, the 99th percentile and the largest
          ratio lr·σ₁(u)/σ₁(W) before the cap, over the matrices;
        - ``step_ratio_max_of``: the name of the matrix with the largest ratio; None if the optimizer has no names.
        """
        ratios, factors, names = [], [], []
        for group in self.param_groups:
            labels = group.get("param_names") or [None] * len(group["params"])
            for parameter, name in zip(group["params"], labels, strict=True):
                if _is_capped(group, parameter) and "sizes" in self.state.get(parameter, {}):
                    step, weight = self.state[parameter]["sizes"]
                    ratios.append(torch.where(weight > 0, step / weight, 0))
                    factors.append((group["tau"] / ratios[-1]).clamp(max=1))
                    names += [name] * group["splits"]
        if not ratios:
            return {}
        ratio, factor = torch.cat(ratios).cpu(), torch.cat(factors).cpu()
        median, high, most = ratio.quantile(torch.tensor([0.5, 0.99, 1])).tolist()
        return {
            "capped": (factor < 1).double().mean().item(),
            "lr_factor_min": factor.min().item(),
            "lr_factor_median": factor.median().item(),
            "step_ratio_median": median,
            "step_ratio_p99": high,
            "step_ratio_max": most,
            "step_ratio_max_of": names[int(ratio.argmax())],
        }


def _is_capped(group: Group, parameter: Tensor) -> bool:
    """Whether a parameter of a group is one or more matrices with a cap."""
    return bool(group["cap"]) and parameter.ndim >= 2 and parameter.numel() > 0 and not math.isinf(group["tau"])
