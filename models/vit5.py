"""ViT-5: a plain vision transformer with the parts that are usual in language models, on timm's implementation.

Source: "ViT-5" (arXiv:2602.08071) and its released code, wangf3014/ViT-5. RMSNorm, no bias of queries, keys and values,
RMSNorm of queries and keys, LayerScale, four register tokens, learned positions of the patches and rotary ones of
patches and registers, and the same drop-path rate in all blocks. Released weights load: :mod:`models.weights.released`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention, RmsNormFp32
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from models.errors import ModelError
from models.registry import create_vit, pretrained_cfg
from models.sizes import check_positive
from models.vit import ViT

PATCH_BASE, REGISTER_BASE = 10_000.0, 100.0  # bases of the rotary frequencies


class Rotation(nn.Module):
    """Rotary positions: turns pairs of neighbouring channels by angles that grow with a token's row and column.

    The first half of the channels turns with the row, the second half with the column. The class token is not turned.
    Registers stand on a square grid of their own.

    Args:
        grid: rows and columns of patches.
        registers: number of register tokens, a square number.
        head_dim: channels of a head, divisible by 4.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, grid: tuple[int, int], registers: int, head_dim: int):
        super().__init__()
        self.grid, self.registers, self.head_dim = grid, registers, head_dim
        angles = self._angles()
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def _angles(self) -> Tensor:
        """The angle of every channel of each token, ``(1 + registers + patches, head_dim)``."""
        side = round(self.registers**0.5)
        parts = [torch.zeros(1, self.head_dim)]
        for (rows, columns), base in (((side, side), REGISTER_BASE), (self.grid, PATCH_BASE)):
            half = self.head_dim // 2
            speeds = base ** (-torch.arange(0, half, 2) / half)
            row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
            angles = torch.stack([row, column], dim=-1).flatten(0, 1)[:, :, None] * speeds  # (tokens, 2, half / 2)
            parts.append(angles.repeat_interleave(2, dim=-1).flatten(1))
        return torch.cat(parts)

    def reset_parameters(self) -> None:
        """Compute the tables again, for a model that was built on the meta device."""
        angles = self._angles().to(self.cos.device)
        self.cos.copy_(angles.cos())
        self.sin.copy_(angles.sin())

    def forward(self, x: Tensor) -> Tensor:
        """Queries or keys ``(batch, heads, tokens, head_dim)`` to the same shape."""
        even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack((-odd, even), dim=-1).flatten(-2)
        return (x * self.cos + turned * self.sin).to(x.dtype)


class RotaryAttention(Attention):
    """timm's attention with rotary positions. The model sets ``rotation``."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.rotation: nn.Module = nn.Identity()

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """``(batch, tokens, dim)`` to the same shape."""
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.rotation(self.q_norm(q)), self.rotation(self.k_norm(k))
        dropout = self.attn_drop.p if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout, is_causal=is_causal)
        return self.proj_drop(self.proj(x.transpose(1, 2).reshape(batch, tokens, self.attn_dim)))


class ViT5(ViT):
    """ViT-5. The output is that of the class token.

    Args:
        img_size: side of the image in pixels, or (height, width).
        patch_size: side of a patch in pixels.
        embed_dim: channels; each head has a multiple of 4.
        depth: blocks.
        num_heads: attention heads.
        mlp_ratio: ratio of the MLPs' hidden width to ``embed_dim``.
        registers: number of register tokens, a square number.
        layer_scale: initial value of LayerScale (Touvron et al., "Going Deeper with Image Transformers", section 2).
        **kwargs: arguments of timm's ``VisionTransformer``.

    Raises:
        ModelError: if sizes do not fit together.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        registers: int = 4,
        layer_scale: float = 1e-4,
        **kwargs: Any,
    ):
        check_positive(embed_dim=embed_dim, num_heads=num_heads, registers=registers)
        if round(registers**0.5) ** 2 != registers:
            raise ModelError(f"model.registers={registers} is no square number: set 1, 4, 9 or 16")
        if embed_dim % (4 * num_heads):
            raise ModelError(
                f"rotary positions need heads with a multiple of 4 channels: set model.embed_dim={embed_dim} to a "
                f"multiple of {4 * num_heads}, or change model.num_heads={num_heads}"
            )

        parts: dict[str, Any] = {"norm_layer": RmsNormFp32, "attn_layer": RotaryAttention, "reg_tokens": registers}
        options: dict[str, Any] = {
            "no_embed_class": True,
            "qkv_bias": False,
            "qk_norm": True,
            "init_values": layer_scale,
            "constant_drop_path": True,
            "init": "deit",  # the class token and the registers
        }
        super().__init__(img_size, patch_size, embed_dim, depth, num_heads, mlp_ratio, **(parts | options | kwargs))
        self._set_rotations()

    def _set_rotations(self) -> None:
        """Give all blocks the rotary positions of the image size."""
        blocks: Any = self.blocks
        attention, weight = blocks[0].attn, self.patch_embed.proj.weight
        rotation = Rotation(self.patch_embed.grid_size, self.num_reg_tokens, attention.head_dim).to(weight.device)
        for block in blocks:
            block.attn.rotation = rotation

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """Change the image size, see :meth:`models.vit.ViT.set_input_size`. Rotary positions count the patches anew."""
        super().set_input_size(img_size, patch_size)
        self._set_rotations()


default_cfgs = generate_default_cfgs(
    {
        "vit5_small.untrained": pretrained_cfg(pool_size=None, crop_pct=1.0),
        "vit5_base.untrained": pretrained_cfg(pool_size=None, crop_pct=1.0),
    }
)


@register_model
def vit5_small(pretrained: bool = False, **kwargs: Any) -> ViT5:
    """ViT-5-Small: 22.0 M parameters, 82.2 % top-1 on ImageNet-1K after 800 epochs with 5 of warm-up in its paper."""
    return create_vit(ViT5, "vit5_small", pretrained, {"embed_dim": 384, "depth": 12, "num_heads": 6}, kwargs)


@register_model
def vit5_base(pretrained: bool = False, **kwargs: Any) -> ViT5:
    """ViT-5-Base: 86.5 M parameters, 84.2 % top-1 in its paper."""
    return create_vit(ViT5, "vit5_base", pretrained, {"embed_dim": 768, "depth": 12, "num_heads": 12}, kwargs)
