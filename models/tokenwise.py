"""Linear maps of every token of a map, and the MLP made of them."""

import torch.nn.functional as F
from torch import Tensor, nn

from models.onednn import suits_onednn


def tokenwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear``, made for maps: ``(batch, height, width, in)`` to ``(batch, height, width, out)``.

    On a CPU as a 1x1 convolution: PyTorch gives float32 matrix products to MKL, which on some CPUs reaches half of
    oneDNN's speed, and convolutions to oneDNN.

    Args:
        x: the map.
        weight: ``(out, in)``.
        bias: ``(out,)`` or None.
    """
    if x.ndim != 4 or not suits_onednn(x):
        return F.linear(x, weight, bias)
    return F.conv2d(x.permute(0, 3, 1, 2), weight[:, :, None, None], bias).permute(0, 2, 3, 1).contiguous()


class TokenLinear(nn.Linear):
    """An ``nn.Linear`` for maps of tokens, in every respect but speed."""

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, height, width, in_features)`` to ``(batch, height, width, out_features)``."""
        return tokenwise(x, self.weight, self.bias)


class Mlp(nn.Module):
    """Two linear layers with GELU between them.

    Args:
        dim: channels.
        hidden: channels between the layers.
    """

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = TokenLinear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = TokenLinear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, height, width, dim)`` to the same shape."""
        return self.fc2(self.act(self.fc1(x)))
