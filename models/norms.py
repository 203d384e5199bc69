"""Normalisation layers that vision transformers may use instead of LayerNorm (``model.norm``)."""

from typing import Any

import torch
from timm.layers import RmsNorm
from torch import Tensor, nn


class DyT(nn.Module):
    """Dynamic tanh: ``weight * tanh(alpha * x) + bias``, an element-wise layer in place of a norm.

    Source: Zhu et al., "Transformers without Normalization", CVPR 2025, arXiv:2503.10622, section 4. Its Lipschitz
    constant is max |weight| · |alpha|, whereas that of LayerNorm depends on its input.

    Args:
        dim: channels, the last dimension of the input.
        alpha: initial slope, a learned scalar; the paper's 0.5 suits models that are not language models.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(self, dim: int, alpha: float = 0.5, device: Any = None, dtype: Any = None):
        super().__init__()
        where = {"device": device, "dtype": dtype}
        self.alpha = nn.Parameter(torch.full((1,), alpha, **where))
        self.weight = nn.Parameter(torch.ones(dim, **where))
        self.bias = nn.Parameter(torch.zeros(dim, **where))

    def forward(self, x: Tensor) -> Tensor:
        """``(..., dim)`` to the same shape."""
        return self.weight * torch.tanh(self.alpha * x) + self.bias


# "layernorm" is timm's own default for its vision transformers.
NORMS: dict[str, Any] = {"layernorm": None, "rmsnorm": RmsNorm, "dyt": DyT}
