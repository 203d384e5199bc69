"""Blocks of vision transformers that timm lacks."""

from typing import Any

from timm.models.vision_transformer import Block
from torch import Tensor


class PostNormBlock(Block):
    """``x <- LN(x + f(x))``, the original transformer's order, for attention and MLP in turn.

    Source: Xiong et al., "On Layer Normalization in the Transformer Architecture", ICML 2020, section 3.1.
    timm's ``ResPostBlock`` is different: ``x + LN(f(x))``.
    """

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """``(batch, tokens, dim)`` to the same shape."""
        attended = self.attn(x, attn_mask=attn_mask, is_causal=is_causal)
        x = self.norm1(x + self.drop_path1(self.ls1(attended)))
        return self.norm2(x + self.drop_path2(self.ls2(self.mlp(x))))


def with_drop_path(block: Any, rate: float) -> Any:
    """Return a constructor of blocks that all have this stochastic depth. timm's rate grows from block to block."""
    return lambda **options: block(**(options | {"drop_path": rate}))
