"""An optimizer's step as a CUDA graph: the host starts one graph instead of hundreds of small kernels."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class GraphedStep:
    """Takes the steps of an optimizer on a GPU, and records one of them as a CUDA graph that takes all later ones.

    A graph runs the same kernels on the same memory each time. So the graph reads copies of the gradients, and learning
    rates from tensors. The other options of its groups must stay as they are. If other parameters have gradients, the
    step is recorded again.

    Args:
        optimizer: an optimizer that reads no number back to the host, takes the learning rate as a tensor, and changes
            parameters and states in place, such as :class:`optim.AdamW2`. All parameters are on one GPU.
    """

    def __init__(self, optimizer: Optimizer):
        self.optimizer = optimizer
        groups = optimizer.param_groups
        self.rates = [torch.zeros((), dtype=torch.float32, device=group["params"][0].device) for group in groups]
        self.graph: torch.cuda.CUDAGraph | None = None
        self.members: list[Tensor] = []  # the parameters that had gradients in the last step
        self.gradients: list[Tensor] = []  # what the graph reads
        optimizer.register_load_state_dict_post_hook(lambda _: self._begin([]))  # a loaded state lies elsewhere

    @staticmethod
    def suits(optimizer: Optimizer) -> bool:
        """Whether the optimizer says that its steps can be recorded, and its parameters are on a GPU."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        return getattr(optimizer, "supports_cuda_graphs", False) and all(p.is_cuda for p in parameters)

    def __call__(self) -> None:
        """Take a step, with the gradients and learning rates that the optimizer has now."""
        for rate, group in zip(self.rates, self.optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        members = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        if [id(parameter) for parameter in members] != [id(parameter) for parameter in self.members]:
            self._begin(members)
            self._step()  # it makes the states that are missing, which a graph cannot
            return
        if self.graph is None:
            self.graph = self._record()
        torch._foreach_copy_(self.gradients, [p.grad for p in members])
        self.graph.replay()

    def _begin(self, members: list[Tensor]) -> None:
        """Drop the graph. The next one is for steps in which ``members`` have gradients."""
        self.graph, self.members, self.gradients = None, members, []

    def _record(self) -> torch.cuda.CUDAGraph:
        """Record a step. The recording changes no values."""
        given = [p.grad for p in self.members]
        self.gradients = [torch.empty_like(gradient) for gradient in given if gradient is not None]
        graph = torch.cuda.CUDAGraph()
        for parameter, copied in zip(self.members, self.gradients, strict=True):
            parameter.grad = copied
        try:
            # Other threads go on using the GPU, such as those of DALI and NCCL; "global" would make that an error.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._step()
        finally:
            for parameter, gradient in zip(self.members, given, strict=True):
                parameter.grad = gradient
        return graph

    def _step(self) -> None:
        """Let the optimizer take a step, with its learning rates in tensors."""
        groups: list[dict[str, Any]] = self.optimizer.param_groups
        given = [group["lr"] for group in groups]
        for group, rate in zip(groups, self.rates, strict=True):
            group["lr"] = rate
        try:
            self.optimizer.step()
        finally:
            for group, rate in zip(groups, given, strict=True):
                group["lr"] = rate
