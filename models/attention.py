"""Attention whose logits are bounded: cosine similarity times a constant temperature (LipsFormer, section 4.1.2)."""

import torch
import torch.nn.functional as F
from timm.layers import gen_relative_position_index
from torch import Tensor, nn


class WindowAttention(nn.Module):
    """Cosine attention inside non-overlapping windows, with a learned relative position bias.

    Queries and keys are normalised to unit length, so every logit lies in ``[-temperature, temperature]`` plus the
    bias; values are used as they are (the released form of the paper's attention).

    Args:
        dim: channels, divisible by ``num_heads``.
        window_size: side of a window in tokens.
        num_heads: attention heads.
        temperature: constant that multiplies the cosines.
    """

    relative_position_index: Tensor

    def __init__(self, dim: int, window_size: int, num_heads: int, temperature: float = 10.0):
        super().__init__()
        self.window_size = window_size
        self.num_heads = num_heads
        self.temperature = temperature
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window_size - 1) ** 2, num_heads))
        index = gen_relative_position_index((window_size, window_size))
        self.register_buffer("relative_position_index", index.flatten(), persistent=False)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def position_bias(self) -> Tensor:
        """The bias of every pair of tokens in a window: ``(num_heads, tokens, tokens)``."""
        tokens = self.window_size**2
        bias = self.relative_position_bias_table[self.relative_position_index]
        return bias.view(tokens, tokens, self.num_heads).permute(2, 0, 1).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, height, width, dim)`` to the same shape; the window divides height and width."""
        batch, height, width, dim = x.shape
        side, heads = self.window_size, self.num_heads
        rows, columns = height // side, width // side
        qkv = self.qkv(x).view(batch, rows, side, columns, side, 3, heads, dim // heads)
        qkv = qkv.permute(5, 0, 1, 3, 6, 2, 4, 7).reshape(3, batch * rows * columns, heads, side**2, dim // heads)
        q, k, v = qkv.unbind(0)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        bias = self.position_bias().to(q.dtype).unsqueeze(0)
        out = F.scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype), attn_mask=bias, scale=self.temperature)
        out = out.view(batch, rows, columns, heads, side, side, dim // heads)
        return self.proj(out.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, height, width, dim))
