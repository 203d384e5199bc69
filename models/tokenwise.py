"""Linear layers on the tokens of a feature map, and the MLP made of them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.onednn import suits_onednn


@torch.fx.wrap  # FX traces it as one node, because the fastest operation depends on the tensor
def tokenwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear`` for feature maps: ``(batch, height, width, in)`` to ``(batch, height, width, out)``.

    On a CPU it is a 1x1 convolution. PyTorch computes float32 matrix products with MKL and convolutions with oneDNN,
    and on some CPUs MKL reaches only half of oneDNN's speed.

    Args:
        x: feature map.
        weight: ``(out, in)``.
        bias: ``(out,)`` or None.
    """
    if x.ndim != 4 or not suits_onednn(x):
        return F.linear(x, weight, bias)
    return F.conv2d(x.permute(0, 3, 1, 2), weight[:, :, None, None], bias).permute(0, 2, 3, 1).contiguous()


class TokenLinear(nn.Linear):
    """An ``nn.Linear`` for feature maps. Only its speed differs."""

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, height, width, in_features)`` to ``(batch, height, width, out_features)``."""
        return tokenwise(x, self.weight, self.bias)


class Mlp(nn.Module):
    """Two linear layers with GELU between them.

    Args:
        dim: channels.
        hidden: channels between the layers.
        drop: dropout rate after each linear layer.
        **factory: device and dtype of the parameters.
    """

    def __init__(self, dim: int, hidden: int, drop: float = 0.0, **factory: Any):
        super().__init__()
        self.fc1 = TokenLinear(dim, hidden, **factory)
        self.act = nn.GELU()
        self.drop1 = nn.Dropout(drop)
        self.fc2 = TokenLinear(hidden, dim, **factory)
        self.drop2 = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, height, width, dim)`` to the same shape."""
        return self.drop2(self.fc2(self.drop1(self.act(self.fc1(x)))))
