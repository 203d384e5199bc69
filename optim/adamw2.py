"""AdamW²: AdamW whose step on a weight matrix is short beside the matrix itself (Qi et al., ICLR 2025)."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from optim.power_iteration import iterate, start_vectors

FIRST_ITERATIONS = 12  # of a step in which the vectors of some matrix are new

Group = dict[str, Any]


class Stack(NamedTuple):
    """Matrices of one shape in one group, which move together."""

    group: Group
    parameters: list[Tensor]
    matrices: Tensor  # (parameters, 2, splits, rows, columns): AdamW's step −lr·u, beside it the weights


class AdamW2(Optimizer):
    """AdamW that never lets a step change a weight matrix's largest singular value by much.

    With u = m̂ / (√v̂ + ε), the learning rate of a matrix W becomes α = min(lr, τ·σ₁(W)/σ₁(u)), for its decoupled
    weight decay, too. By Weyl's inequality a step then grows σ₁(W) by a factor of at most 1 + τ, so that full learning
    rate from the first step cannot blow a matrix up (Algorithm 1 of the paper). Both σ₁ come from power iteration with
    vectors that are kept between steps. Vectors (biases, gains) take AdamW's step, and so does a matrix of zeros.

    A group may say ``cap=False`` (tables and tokens, which are no linear maps) and ``splits=k`` (k matrices on top of
    one another, as in a fused qkv, each with a cap of its own). Tensors of more dimensions count as ``(out, -1)``.

    No number is read back to the host, so that a step neither waits for a GPU nor breaks a CUDA graph. All element-wise
    work on moments is torch's own ``AdamW(fused=True)``.

    Args:
        params: parameters, named parameters or groups of them.
        lr: learning rate; a tensor of one number for CUDA graphs.
        betas: decay of the means of gradient and squared gradient.
        eps: added to the root of the second.
        weight_decay: decoupled, multiplied by the learning rate.
        tau: most that a step may grow σ₁, relatively; infinity: AdamW itself, which measures nothing.
        power_iterations: in each step; the first one takes more.

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
        power_iterations: int = 1,
    ):
        numbers = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "tau": tau}
        defaults = numbers | {"power_iterations": power_iterations, "cap": True, "splits": 1}
        _check(defaults)
        super().__init__(params, defaults)

    # --- Algorithm 1 ----------------------------------------------------------------------------------------------

    @torch.compiler.disable  # torch 2.14's compiler was seen to hand the fused kernel another matrix's gradient
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take a step; the loss of ``closure``, where one is given, which computes the gradients anew."""
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
        """Move ``targets`` as torch's fused AdamW would move the parameters, with a weight decay of its own.

        The kernel reads memory from its start to its end, whatever the strides say: it gets copies of all else.
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
        """AdamW's step of each matrix, −lr·u: where its kernel moves zeros to. The parameters stay."""
        first, splits = parameters[0], group["splits"]
        both = first.new_empty(len(parameters), 2, *first.shape)
        steps, weights = both.unbind(1)
        steps.zero_()
        torch._foreach_copy_(weights.unbind(), parameters)
        self._adamw(group, parameters, list(steps.unbind()), decay=0.0)
        return Stack(group, parameters, both.view(len(parameters), 2, splits, len(first) // splits, -1))

    def _measure(self, stacks: list[Stack], least: int) -> None:
        """Bring σ₁ of all steps and weights up to date, and the vectors that find them, by ``least`` iterations."""
        states = [self.state[parameter] for stack in stacks for parameter in stack.parameters]
        matrices = [stack.matrices.flatten(0, 2).float() for stack in stacks]
        vectors = [torch.stack([self.state[p]["vectors"] for p in s.parameters]).flatten(0, 2) for s in stacks]
        for _ in range(max(least, *(stack.group["power_iterations"] for stack in stacks))):
            sizes, vectors = iterate(matrices, vectors)
        for key, found in (("sizes", sizes), ("vectors", vectors)):
            each = [f.view(*s.matrices.shape[:3], *f.shape[1:]) for f, s in zip(found, stacks, strict=True)]
            torch._foreach_copy_([state[key] for state in states], [one for f in each for one in f.unbind()])

    def _move(self, stack: Stack) -> None:
        """Shorten each matrix's step until it is allowed, and take it."""
        group = stack.group
        steps, weights = stack.matrices.unbind(1)
        step_sizes, weight_sizes = torch.stack([self.state[p]["sizes"] for p in stack.parameters]).unbind(1)
        # α / lr. A factor of exactly 1 leaves AdamW's own step, so nobody has to know which matrices are capped.
        factors = torch.where(weight_sizes > 0, group["tau"] * weight_sizes / step_sizes, 1).clamp(max=1)
        factors = factors[..., None, None]
        weights.mul_(1 - group["lr"] * group["weight_decay"] * factors)
        weights.addcmul_(steps, factors.to(steps.dtype))
        torch._foreach_copy_(stack.parameters, weights.view(-1, *stack.parameters[0].shape).unbind())

    # --- what is kept ---------------------------------------------------------------------------------------------

    def _begin(self, group: Group, parameter: Tensor) -> bool:
        """Make the state of a parameter at its first step, or anew where somebody cleared it; whether vectors are new.

        All of it lies on the parameter's device, and its moments in the order of their indices.
        """
        if parameter.grad is not None and parameter.grad.is_sparse:
            raise RuntimeError("AdamW2 takes no sparse gradients")
        state = self.state[parameter]
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
        for name in ("exp_avg", "exp_avg_sq"):  # a state that was loaded may lie otherwise
            state[name] = state[name].contiguous()
        if not _is_capped(group, parameter) or "sizes" in state:
            return False
        splits, columns = group["splits"], parameter[0].numel()
        state["vectors"] = start_vectors(2 * splits, columns, parameter.device).unflatten(0, (2, splits))
        state["sizes"] = torch.zeros(2, splits, dtype=torch.float32, device=parameter.device)  # σ₁ of lr·u and of W
        return True

    def add_param_group(self, param_group: Group) -> None:
        """Add a group.

        Raises:
            ValueError: for an option out of range, or splits that do not divide a matrix. The group is not added then.
        """
        super().add_param_group(param_group)
        try:
            _check(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state.

        Raises:
            ValueError: if it is another optimizer's.
        """
        with self.register_load_state_dict_pre_hook(_refuse_another_s):  # after those that may translate it
            super().load_state_dict(state_dict)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As torch's. Options that are younger than a state get their defaults.

        torch gives what it loads the parameter's type and leaves step numbers where they were. Here all but the moments
        is float32 on the parameter's device: the fused kernel wants the step number there, and would wait for it.
        """
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
        for parameter, kept in self.state.items():
            for name in kept.keys() - {"exp_avg", "exp_avg_sq"}:
                kept[name] = torch.as_tensor(kept[name], dtype=torch.float32, device=parameter.device)

    # --- what it did ----------------------------------------------------------------------------------------------

    def metrics(self) -> dict[str, float | str | None]:
        """What the cap did in the last step, for a log; nothing without matrices. It waits for the device.

        ``capped`` is the share of the matrices that were; ``lr_factor_*`` by what the learning rate was multiplied, of
        the matrix with the smallest factor and of the median one; ``step_ratio_*`` lr·σ₁(u)/σ₁(W) before the cap, of
        the median matrix, the 99th percentile and the largest; ``step_ratio_max_of`` the name of that matrix, where the
        optimizer was given names.
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
            **{"capped": (factor < 1).double().mean().item()},
            **{"lr_factor_min": factor.min().item(), "lr_factor_median": factor.median().item()},
            **{"step_ratio_median": median, "step_ratio_p99": high, "step_ratio_max": most},
            "step_ratio_max_of": names[int(ratio.argmax())],
        }


def _is_capped(group: Group, parameter: Tensor) -> bool:
    """Whether a parameter of a group counts as one or more matrices under a cap."""
    return bool(group["cap"]) and parameter.ndim >= 2 and parameter.numel() > 0 and not math.isinf(group["tau"])


def _check(options: Group) -> None:
    """Refuse what no step can be taken with, in a group or in the defaults."""
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
            raise ValueError(f"{name}={options[name]} must be 1 or more, and a whole number")
    for parameter in options.get("params", []):
        if parameter.is_complex():
            raise ValueError("AdamW2 takes no complex parameters")
        if options["cap"] and parameter.ndim >= 2 and len(parameter) % splits:
            raise ValueError(f"splits={splits} does not divide the {len(parameter)} rows of a matrix")


def _refuse_another_s(_: Optimizer, state_dict: dict[str, Any]) -> None:
    """Raise an error for another optimizer's state."""
    if not all({"tau", "cap", "splits"} <= group.keys() for group in state_dict["param_groups"]):
        raise ValueError("the state is of another optimizer than AdamW2, which keeps singular vectors beside it")
