"""Attention in windows and in stripes."""

from collections.abc import Callable
from typing import Any, Self

import torch
import torch.nn.functional as F
from timm.layers import gen_relative_position_index, resize_rel_pos_bias_table
from torch import Tensor, nn

from models.depthwise import DepthwiseConv2d
from models.similarity import Similarity
from models.tokenwise import TokenLinear


class WindowAttention(nn.Module):
    """Attention inside non-overlapping windows, with a learned relative position bias.

    Args:
        dim: channels, divisible by ``num_heads``.
        window_size: side of a window in tokens.
        num_heads: attention heads.
        similarity: how queries and keys are compared.
        attn_drop: dropout rate of the attention weights.
        proj_drop: dropout rate of the output.
        **factory: device and dtype of the parameters.
    """

    relative_position_index: Tensor

    def __init__(
        self,
        dim: int,
        window_size: int,
        num_heads: int,
        similarity: Similarity,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        **factory: Any,
    ):
        super().__init__()
        self.window_size = window_size
        self.num_heads = num_heads
        self.similarity = similarity
        self.attn_drop = nn.Dropout(attn_drop)
        self.qkv = TokenLinear(dim, 3 * dim, **factory)
        self.proj = TokenLinear(dim, dim, **factory)
        self.proj_drop = nn.Dropout(proj_drop)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window_size - 1) ** 2, num_heads, **factory))
        self.init_non_persistent_buffers()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def init_non_persistent_buffers(self) -> None:
        """Compute the index into the bias table, which is not in the state dict. The method's name is timm's.

        The index has a row for each token. Rows are padded with zeros to a multiple of 8 elements.
        A model on the meta device gets a real index too, because its weights may be assigned later.
        """
        table = self.relative_position_bias_table
        with torch.inference_mode(False):  # training could not use an inference tensor
            index = gen_relative_position_index((self.window_size, self.window_size), device="cpu")
            index = F.pad(index, (0, -len(index) % 8)).flatten()
            index = index if table.is_meta else index.to(table.device)
        self.register_buffer("relative_position_index", index, persistent=False)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """The bias table, also for models without this method that contain our layers (timm's ``features_only``)."""
        return {"relative_position_bias_table"}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = self.relative_position_index
        super()._apply(fn, recurse)
        if self.relative_position_index is not before:  # `to_empty` leaves it uninitialised
            self.init_non_persistent_buffers()
        return self

    def set_window_size(self, window_size: int) -> None:
        """Change the window size. The bias table is interpolated as in timm."""
        if window_size == self.window_size:
            return
        table, old = self.relative_position_bias_table, (self.window_size, self.window_size)
        shape = ((2 * window_size - 1) ** 2, self.num_heads)
        with torch.no_grad():
            resized = resize_rel_pos_bias_table(table, (window_size, window_size), shape, old)
        self.window_size = window_size
        self.relative_position_bias_table = nn.Parameter(resized, requires_grad=table.requires_grad)
        self.init_non_persistent_buffers()

    def position_bias(self, dtype: torch.dtype) -> Tensor:
        """The bias of every pair of tokens in a window: ``(num_heads, tokens, tokens)``.

        Its rows lie in memory at multiples of 8 elements, as GPUs' attention kernels need them.
        """
        tokens = self.window_size * self.window_size
        bias = self.relative_position_bias_table[self.relative_position_index]
        # Cast and copied in one operation, because otherwise torch.compile may give the backward pass another layout.
        bias = bias.view(tokens, -1, self.num_heads).permute(2, 0, 1).to(dtype, memory_format=torch.contiguous_format)
        return bias[..., :tokens]

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, height, width, dim)`` to the same shape; ``window_size`` must divide height and width."""
        batch, height, width, dim = x.shape
        side, heads = self.window_size, self.num_heads
        rows, columns = height // side, width // side
        qkv = self.qkv(x).view(batch, rows, side, columns, side, 3, heads, dim // heads)
        # Flatten to rows: torch.compile makes slow code for norms of a tensor with token and head dimensions.
        qkv = qkv.permute(5, 0, 1, 3, 6, 2, 4, 7).reshape(3, -1, dim // heads)
        q, k, v = qkv.unbind(0)
        q, k, v = self.similarity.prepare(q, k, v)
        windows = (-1, heads, side * side, dim // heads)
        bias = self.position_bias(q.dtype).unsqueeze(0)
        out = F.scaled_dot_product_attention(
            q.view(windows),
            k.view(windows),
            v.view(windows),
            attn_mask=bias,
            dropout_p=self.attn_drop.p if self.training else 0.0,
            scale=self.similarity.scale,
        )
        out = out.view(batch, rows, columns, heads, side, side, dim // heads)
        out = out.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, height, width, dim)
        return self.proj_drop(self.proj(_times(out, self.similarity.gain)))


class StripeAttention(nn.Module):
    """One branch of cross-shaped attention: attention inside stripes, plus a convolution of the values (LePE).

    LePE (locally-enhanced positional encoding) is a depthwise 3x3 convolution. It works on each stripe separately.

    Args:
        dim: channels of the branch, divisible by ``num_heads``.
        stripe: (height, width) of a stripe in tokens.
        num_heads: attention heads of the branch.
        similarity: how queries and keys are compared.
        attn_drop: dropout rate of the attention weights.
        **factory: device and dtype of the parameters.
    """

    def __init__(
        self,
        dim: int,
        stripe: tuple[int, int],
        num_heads: int,
        similarity: Similarity,
        attn_drop: float = 0.0,
        **factory: Any,
    ):
        super().__init__()
        self.stripe = stripe
        self.num_heads = num_heads
        self.similarity = similarity
        self.attn_drop = nn.Dropout(attn_drop)
        self.lepe = DepthwiseConv2d(dim, 3, **factory)

    def forward(self, qkv: Tensor) -> Tensor:
        """Queries, keys and values ``(batch, height, width, 3, dim)`` to ``(batch, height, width, dim)``."""
        batch, height, width, _, dim = qkv.shape
        tall, wide = self.stripe
        rows, columns = height // tall, width // wide
        qkv = qkv.view(batch, rows, tall, columns, wide, 3, dim).permute(5, 0, 1, 3, 2, 4, 6)
        qkv = qkv.reshape(3, batch * rows * columns, tall * wide, self.num_heads, dim // self.num_heads)
        q, k, v = qkv.unbind(0)
        q, k, v = self.similarity.prepare(q, k, v)
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            dropout_p=self.attn_drop.p if self.training else 0.0,
            scale=self.similarity.scale,
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
        size: (height, width) of the feature map in tokens.
        num_heads: attention heads; an even number unless ``stripe_width`` is None.
        stripe_width: width of the stripes in tokens; None for one branch over the whole feature map.
        similarity: how queries and keys are compared.
        attn_drop: dropout rate of the attention weights.
        proj_drop: dropout rate of the output.
        **factory: device and dtype of the parameters.
    """

    def __init__(
        self,
        dim: int,
        size: tuple[int, int],
        num_heads: int,
        stripe_width: int | None,
        similarity: Similarity,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        **factory: Any,
    ):
        super().__init__()
        stripes = _stripes(size, stripe_width)
        count = len(stripes)
        self.qkv = TokenLinear(dim, 3 * dim, **factory)
        self.proj = TokenLinear(dim, dim, **factory)
        self.proj_drop = nn.Dropout(proj_drop)
        self.stripes = nn.ModuleList(
            StripeAttention(dim // count, stripe, num_heads // count, similarity, attn_drop, **factory)
            for stripe in stripes
        )

    def set_input_size(self, size: tuple[int, int], stripe_width: int | None) -> None:
        """Change the sizes of the feature map and of the stripes. The number of branches stays the same."""
        branch: Any
        for branch, stripe in zip(self.stripes, _stripes(size, stripe_width), strict=True):
            branch.stripe = stripe

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, *size, dim)`` to the same shape."""
        batch, height, width, dim = x.shape
        count = len(self.stripes)
        qkv = self.qkv(x).view(batch, height, width, 3, count, dim // count)
        branches = []
        for i, stripe in enumerate(self.stripes):
            branches.append(stripe(qkv[..., i, :]))
        return self.proj_drop(self.proj(torch.cat(branches, dim=-1)))


def _stripes(size: tuple[int, int], stripe_width: int | None) -> list[tuple[int, int]]:
    """(height, width) of each branch's stripes on a map of ``size``: vertical stripes first, then horizontal ones."""
    height, width = size
    return [size] if stripe_width is None else [(height, stripe_width), (stripe_width, width)]


def _times(x: Tensor, gain: float) -> Tensor:
    return x if gain == 1 else x * gain
