"""Count a model's floating-point operations with torch's own counter, and say how long they take at the peak."""

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from engine.measuring.gpus import peak_flops


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


def seconds_at_peak(model: nn.Module, side: int, device: torch.device, amp: str) -> float | None:
    """Return the seconds for one image, forward and backward, at the device's peak FLOP/s; None if it is unknown."""
    peak = peak_flops(device, amp)
    if peak is None:
        return None
    try:
        return 3 * forward_flops(model, side) / peak  # backward costs twice the forward pass
    except RuntimeError:  # some models cannot run on the meta device
        return None
