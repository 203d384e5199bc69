"""Count a model's floating-point operations with torch's own counter."""

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def forward_flops(model: nn.Module, side: int) -> int:
    """Return the floating-point operations of a forward pass with one image. A multiply-add counts as two.

    The model runs on the meta device, where the counter includes fused attention. On a CPU it counts fused attention as
    zero.

    Args:
        model: any image model.
        side: side of the image in pixels.
    """
    on_meta = copy.deepcopy(model).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        on_meta(torch.empty(1, 3, side, side, device="meta"))
    return counter.get_total_flops()
