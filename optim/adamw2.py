"""AdamW² (Qi et al., ICLR 2025): AdamW that limits the size of each step relative to the weight matrix it changes."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from optim.power_iteration import iterate, start_vectors

FIRST_ITERATIONS = 12  # power iterations in a step where some matrix has new vectors

Group = dict[str, Any]


class Stack(NamedTuple):
    """Matrices of one shape in one group, which are updated together."""

    group: Group
    parameters: list[Tensor]
    matrices: Tensor  # (parameters, 2, splits, rows, columns): AdamW's step −lr·u, then the weights


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
    own ``AdamW(fused=True)`` kernel updates the moments.

    Args:
        params: parameters, named parameters or groups of them.
        lr: learning rate; a tensor with one element for CUDA graphs.
        betas: decay rates of the moving averages of the gradient and of its square.
        eps: added to the square root of the second average.
        weight_decay: decoupled weight decay, multiplied by the learning rate.
        tau: largest relative growth of σ₁ in a step. Infinity gives plain AdamW, which measures nothing.
        power_iterations: power iterations in each step. Steps with new matrices take more.

    Raises:
        ValueError: if a number is out of range, or ``splits`` does not divide the rows of a matrix.
    """

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
        _check(defaults)
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
        stacks: dict[torch.device, list[Stack]] = defaultdict(list)
        is_new = False
        for group in self.param_groups:
            others, shapes = [], defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    is_new |= self._begin(group, parameter)
                    if _is_capped(group, parameter):
                        shapes[parameter.device, parameter.dtype, parameter.shape].append(parameter)
                    else:
                        others.append(parameter)
            self._adamw(group, others, others, group["weight_decay"])
            for (device, *_), members in shapes.items():
                stacks[device].append(self._proposal(group, members))
        for beside in stacks.values():
            self._measure(beside, FIRST_ITERATIONS if is_new else 1)
            for stack in beside:
                self._move(stack)
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
        )
        for target, moved in zip(targets, dense, strict=True):
            if target is not moved:
                target.copy_(moved)

    def _proposal(self, group: Group, parameters: list[Tensor]) -> Stack:
        """Compute AdamW's step −lr·u of each matrix by applying the kernel to zeros. The parameters do not change."""
        first, splits = parameters[0], group["splits"]
        both = first.new_empty(len(parameters), 2, *first.shape)
        steps, weights = both.unbind(1)
        steps.zero_()
        torch._foreach_copy_(weights.unbind(), parameters)
        self._adamw(group, parameters, list(steps.unbind()), decay=0.0)
        return Stack(group, parameters, both.view(len(parameters), 2, splits, len(first) // splits, -1))

    def _measure(self, stacks: list[Stack], least: int) -> None:
        """Run at least ``least`` iterations. Store σ₁ of all steps and weights, and the vectors that estimate them."""
        states = [self.state[parameter] for stack in stacks for parameter in stack.parameters]
        matrices = [stack.matrices.flatten(0, 2).float() for stack in stacks]
        vectors = [torch.stack([self.state[p]["vectors"] for p in s.parameters]).flatten(0, 2) for s in stacks]
        for _ in range(max(least, *(stack.group["power_iterations"] for stack in stacks))):
            sizes, vectors = iterate(matrices, vectors)
        for key, found in (("sizes", sizes), ("vectors", vectors)):
            each = [f.view(*s.matrices.shape[:3], *f.shape[1:]) for f, s in zip(found, stacks, strict=True)]
            torch._foreach_copy_([state[key] for state in states], [one for f in each for one in f.unbind()])

    def _move(self, stack: Stack) -> None:
        """Scale each matrix's step down to the cap, and apply it."""
        group = stack.group
        steps, weights = stack.matrices.unbind(1)
        step_sizes, weight_sizes = torch.stack([self.state[p]["sizes"] for p in stack.parameters]).unbind(1)
        # α / lr. A factor of exactly 1 gives AdamW's own step, so capped and uncapped matrices need no separate code.
        factors = torch.where(weight_sizes > 0, group["tau"] * weight_sizes / step_sizes, 1).clamp(max=1)
        factors = factors[..., None, None]
        weights.mul_(1 - group["lr"] * group["weight_decay"] * factors)
        weights.addcmul_(steps, factors.to(steps.dtype))
        torch._foreach_copy_(stack.parameters, weights.view(-1, *stack.parameters[0].shape).unbind())

    # --- state ----------------------------------------------------------------------------------------------------

    def _begin(self, group: Group, parameter: Tensor) -> bool:
        """Create a parameter's state if it has none, on the parameter's device and with contiguous moments.

        Returns:
            Whether the vectors for power iteration are new.
        """
        if parameter.grad is not None and parameter.grad.is_sparse:
            raise RuntimeError("AdamW2 does not support sparse gradients")
        state = self.state[parameter]
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
        for name in ("exp_avg", "exp_avg_sq"):  # a loaded state may have other strides
            state[name] = state[name].contiguous()
        if not _is_capped(group, parameter) or "sizes" in state:
            return False
        splits, columns = group["splits"], parameter[0].numel()
        state["vectors"] = start_vectors(2 * splits, columns, parameter.device).unflatten(0, (2, splits))
        state["sizes"] = torch.zeros(2, splits, dtype=torch.float32, device=parameter.device)  # σ₁ of lr·u and of W
        return True

    def add_param_group(self, param_group: Group) -> None:
        """Add a parameter group.

        Raises:
            ValueError: if an option is out of range, or ``splits`` does not divide the rows of a matrix. The group is
                not added then.
        """
        super().add_param_group(param_group)
        try:
            _check(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state.

        Raises:
            ValueError: if the state belongs to another optimizer.
        """
        with self.register_load_state_dict_pre_hook(_refuse_other_state):  # after hooks that may convert it
            super().load_state_dict(state_dict)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a state as torch does. Options that an old state lacks get their defaults.

        torch converts a loaded state to the parameter's dtype, and does not move step numbers to another device. Here
        everything except the moments becomes float32 on the parameter's device. The fused kernel needs the step number
        there; otherwise each step would wait for a copy.
        """
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
        for parameter, kept in self.state.items():
            for name in kept.keys() - {"exp_avg", "exp_avg_sq"}:
                kept[name] = torch.as_tensor(kept[name], dtype=torch.float32, device=parameter.device)

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


def _check(options: Group) -> None:
    """Check the options of a group or the defaults.

    Raises:
        ValueError: if an option or a parameter is not valid.
    """
    lr, betas, splits = options["lr"], options["betas"], options["splits"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError("lr as a tensor must be a single number")
    for name in ("lr", "eps", "weight_decay"):
        if not isinstance(options[name], Tensor) and not options[name] >= 0:
            raise ValueError(f"{name}={options[name]} must be 0 or more")
    if any(isinstance(beta, Tensor) for beta in betas) or len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas={betas} must be two numbers of at least 0 and less than 1")
    if not options["tau"] > 0:
        raise ValueError(f"tau={options['tau']} must be more than 0")
    for name in ("power_iterations", "splits"):
        if not isinstance(options[name], int) or options[name] < 1:
            raise ValueError(f"{name}={options[name]} must be a whole number of 1 or more")
    for parameter in options.get("params", []):
        if parameter.is_complex():
            raise ValueError("AdamW2 does not support complex parameters")
        if options["cap"] and parameter.ndim >= 2 and len(parameter) % splits:
            raise ValueError(f"splits={splits} does not divide the {len(parameter)} rows of a matrix")


def _refuse_other_state(_: Optimizer, state_dict: dict[str, Any]) -> None:
    """Refuse the state of another optimizer.

    Raises:
        ValueError: if it lacks AdamW²'s options.
    """
    if not all({"tau", "cap", "splits"} <= group.keys() for group in state_dict["param_groups"]):
        raise ValueError("the state belongs to another optimizer: AdamW2 also needs singular vectors")
