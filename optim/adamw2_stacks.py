"""The parameters of AdamW² in stacks: one kernel computes what all parameters of one shape need."""

from typing import Any, NamedTuple

from torch import Tensor

Group = dict[str, Any]


class Stack(NamedTuple):
    """Parameters of one shape in one group, on one device."""

    group: Group
    parameters: list[Tensor]
    pairs: Tensor  # (parameters, 2, *shape): AdamW's step −lr·u, then the weights

    @property
    def matrices(self) -> Tensor:
        """The pairs as matrices, ``(parameters, 2, splits, rows, columns)``."""
        count, _, rows, *_ = self.pairs.shape
        splits = self.group["splits"]
        return self.pairs.view(count, 2, splits, rows // splits, -1)


def unstacked(stacks: list[Stack]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return the parameters of all stacks, their steps and their weights, each in the shape of its parameter."""
    parameters = [parameter for stack in stacks for parameter in stack.parameters]
    steps, weights = ([one for stack in stacks for one in stack.pairs[:, i].unbind()] for i in range(2))
    return parameters, steps, weights
