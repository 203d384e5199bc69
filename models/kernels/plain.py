"""The plain operations that the Triton kernel replaces, with the same arguments and results."""

import torch
from torch import Tensor


def residual(x: Tensor, branch: Tensor, scale: Tensor, drop: Tensor) -> Tensor:
    """``x + drop · scale · branch``."""
    return torch.addcmul(x, branch, (drop[:, None, None, None] * scale).to(x.dtype))


def residual_center_norm(
    x: Tensor, branch: Tensor, scale: Tensor, drop: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """CenterNorm of ``x + drop · scale · branch``."""
    return center_norm(residual(x, branch, scale, drop), weight, bias)


def center_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``weight · d / (d - 1) · (x - mean(x)) + bias`` over the last dimension, of size d."""
    gain = x.shape[-1] / (x.shape[-1] - 1)
    centred = x - x.mean(dim=-1, keepdim=True)
    return torch.addcmul(bias.to(x.dtype), centred, (weight * gain).to(x.dtype))
