"""The plain operations that the Triton kernels replace, with the same arguments and results."""

import torch
import torch.nn.functional as F
from torch import Tensor


def depthwise_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``GELU(DWConv(x) + bias)`` on a map ``(batch, height, width, channels)``; weight ``(channels, 1, k, k)``."""
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    maps = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))
    return F.gelu(maps.permute(0, 2, 3, 1))


def depthwise_gelu_residual(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, drop: Tensor) -> Tensor:
    """``x + drop · scale · GELU(DWConv(x) + bias)``; drop ``(batch,)``, scale ``(channels,)``."""
    return residual(x, depthwise_gelu(x, weight, bias), scale, drop)


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
