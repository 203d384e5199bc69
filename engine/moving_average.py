"""The moving average of a model's weights (``ema``)."""

import copy

import torch
from torch import nn


class MovingAverage:
    """A model whose weights and buffers are the moving average of another model's.

    It is that of timm's ``ModelEmaV3``, except that a tensor which several layers share moves once in a step: timm
    moves it once for each of these layers, so that its average would forget too fast.

    Args:
        model: the model to follow, on its device.
        decay: weight of the average so far, such as 0.9998.

    Attributes:
        module: the average, a copy of the model in evaluation mode.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.module, self.decay = copy.deepcopy(model).eval(), decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average towards the model. Tensors of whole numbers, such as counts, are copied.

        Args:
            model: the model after the step.
            step: number of the step, counted from 1. The first one copies everything: random initial weights would
                stay in the average for tens of thousands of steps.
        """
        averages, values = (of.state_dict(keep_vars=True).values() for of in (self.module, model))
        pairs = {id(average): (average, value) for average, value in zip(averages, values, strict=True)}.values()
        for average, value in pairs:
            if not average.is_floating_point():
                average.copy_(value)
        moving, towards = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
        torch._foreach_lerp_(moving, towards, weight=1 - (self.decay if step > 1 else 0.0))
