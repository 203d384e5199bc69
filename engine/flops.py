"""How much arithmetic a model is, by torch's own counter."""

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def forward_flops(model: nn.Module, side: int) -> int:
    """Floating-point operations of one image's forward pass (a multiply-add counts as two).

    Counted on the meta device, where fused attention counts in full (on a CPU it counts as zero).

    Args:
        model: any image model.
        side: side of the image in pixels.
    """
    on_meta = copy.deepcopy(model).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        on_meta(torch.empty(1, 3, side, side, device="meta"))
    return counter.get_total_flops()
