"""Attention in windows and in stripes, by dot products or by similarities whose logits are bounded."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.layers import gen_relative_position_index
from torch import Tensor, nn

from models.depthwise import DepthwiseConv2d
from models.errors import ModelError
from models.tokenwise import TokenLinear


@dataclass(frozen=True)
class Similarity:
    """What happens to queries, keys and values before the softmax, and to the output after it.

    Attributes:
        scale: constant that multiplies every product of a query and a key.
        normalise: ``"none"``; ``"qk"``: queries and keys to unit length; ``"qkv"``: all three to x / √(‖x‖² + ε).
        epsilon: ε of ``"qkv"``; it bounds the slope near zero.
        gain: constant that multiplies the output.
    """

    scale: float
    normalise: str = "none"
    epsilon: float = 0.0
    gain: float = 1.0

    def prepare(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalise over the last dimension; shapes and the dtype of ``v`` stay."""
        if self.normalise == "none":
            return q, k, v
        if self.normalise == "qk":
            return F.normalize(q, dim=-1).to(v.dtype), F.normalize(k, dim=-1).to(v.dtype), v
        q, k, v = self._soft_unit(q), self._soft_unit(k), self._soft_unit(v)
        return q, k, v

    def _soft_unit(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        return (wide * (wide.square().sum(dim=-1, keepdim=True) + self.epsilon).rsqrt()).to(x.dtype)


def lipsformer_similarity(
    attention: str, temperature: float, epsilon: float, nu: float, gain: float = 1.0
) -> Similarity:
    """The two forms of LipsFormer's attention (section 4.1.2).

    Args:
        attention: ``"released"``: cosine of queries and keys, values as they are, as in the authors' code; or
            ``"certified"``: the paper's, with the values normalised too, the one with a finite Lipschitz constant.
        temperature: constant τ that multiplies the cosines.
        epsilon: ε of the certified form, above 0.
        nu: factor ν of the certified form's output.
        gain: factor of the output in both forms.

    Raises:
        ModelError: for another name, or an ε or ν of which there is no bound.
    """
    if attention == "released":
        return Similarity(temperature, "qk", gain=gain)
    if attention != "certified":
        raise ModelError(f"there is no attention '{attention}': choose model.attention=released or certified")
    if not 0 < epsilon < math.inf:  # nor NaN
        raise ModelError(f"model.epsilon={epsilon:g} gives certified attention no finite bound: make it positive")
    if not math.isfinite(nu):
        raise ModelError(f"model.nu={nu:g} gives certified attention no finite bound: make it a number such as 1")
    return Similarity(temperature, "qkv", epsilon, nu * gain)


class WindowAttention(nn.Module):
    """Attention inside non-overlapping windows, with a learned relative position bias.

    Args:
        dim: channels, divisible by ``num_heads``.
        window_size: side of a window in tokens.
        num_heads: attention heads.
        similarity: of queries and keys.
    """

    relative_position_index: Tensor

    def __init__(self, dim: int, window_size: int, num_heads: int, similarity: Similarity):
        super().__init__()
        self.window_size = window_size
        self.num_heads = num_heads
        self.similarity = similarity
        self.qkv = TokenLinear(dim, 3 * dim)
        self.proj = TokenLinear(dim, dim)
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
        # As rows: the compiler makes slow code of norms over tokens by heads.
        qkv = qkv.permute(5, 0, 1, 3, 6, 2, 4, 7).reshape(3, -1, dim // heads)
        q, k, v = (rows.view(-1, heads, side**2, dim // heads) for rows in self.similarity.prepare(*qkv.unbind(0)))
        bias = self.position_bias().to(q.dtype).unsqueeze(0)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.similarity.scale)
        out = out.view(batch, rows, columns, heads, side, side, dim // heads)
        out = out.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, height, width, dim)
        return self.proj(_times(out, self.similarity.gain))


class StripeAttention(nn.Module):
    """One branch of cross-shaped attention: attention inside stripes, plus a convolution of the values (LePE).

    LePE, the locally-enhanced positional encoding, is a depthwise 3x3 convolution that sees one stripe at a time.

    Args:
        dim: channels of the branch, divisible by ``num_heads``.
        stripe: (height, width) of a stripe in tokens.
        num_heads: attention heads of the branch.
        similarity: of queries and keys.
    """

    def __init__(self, dim: int, stripe: tuple[int, int], num_heads: int, similarity: Similarity):
        super().__init__()
        self.stripe = stripe
        self.num_heads = num_heads
        self.similarity = similarity
        self.lepe = DepthwiseConv2d(dim, 3)

    def forward(self, qkv: Tensor) -> Tensor:
        """Queries, keys and values ``(batch, height, width, 3, dim)`` to ``(batch, height, width, dim)``."""
        batch, height, width, _, dim = qkv.shape
        tall, wide = self.stripe
        rows, columns = height // tall, width // wide
        qkv = qkv.view(batch, rows, tall, columns, wide, 3, dim).permute(5, 0, 1, 3, 2, 4, 6)
        qkv = qkv.reshape(3, batch * rows * columns, tall * wide, self.num_heads, dim // self.num_heads)
        q, k, v = self.similarity.prepare(*qkv.unbind(0))
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), scale=self.similarity.scale
        ).transpose(1, 2)
        values = v.reshape(-1, tall, wide, dim)
        out = out.reshape(values.shape) + self.lepe(values.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        out = _times(out, self.similarity.gain).view(batch, rows, columns, tall, wide, dim)
        return out.permute(0, 1, 3, 2, 4, 5).reshape(batch, height, width, dim)

    def extra_repr(self) -> str:
        return f"stripe={self.stripe}, num_heads={self.num_heads}"


class CrossShapedAttention(nn.Module):
    """Half of the heads attend in vertical stripes, half in horizontal ones (CSwin, section 3.2).

    Args:
        dim: channels, divisible by ``num_heads``.
        size: (height, width) of the map in tokens.
        num_heads: attention heads, even unless ``stripe_width`` is None.
        stripe_width: of both kinds of stripes; None: a single branch over the whole map.
        similarity: of queries and keys.
    """

    def __init__(
        self, dim: int, size: tuple[int, int], num_heads: int, stripe_width: int | None, similarity: Similarity
    ):
        super().__init__()
        height, width = size
        stripes = [size] if stripe_width is None else [(height, stripe_width), (stripe_width, width)]
        count = len(stripes)
        self.qkv = TokenLinear(dim, 3 * dim)
        self.proj = TokenLinear(dim, dim)
        self.stripes = nn.ModuleList(
            StripeAttention(dim // count, stripe, num_heads // count, similarity) for stripe in stripes
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, *size, dim)`` to the same shape."""
        batch, height, width, dim = x.shape
        count = len(self.stripes)
        qkv = self.qkv(x).view(batch, height, width, 3, count, dim // count)
        branches = [stripe(qkv[..., i, :]) for i, stripe in enumerate(self.stripes)]
        return self.proj(torch.cat(branches, dim=-1))


def _times(x: Tensor, gain: float) -> Tensor:
    return x if gain == 1 else x * gain
