"""CSWin: a pyramid with cross-shaped attention (Dong et al., CVPR 2022), the baseline LipsFormer-CSwin builds on."""

from typing import Any

import torch
from timm.layers import DropPath, trunc_normal_
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from models.attention import CrossShapedAttention
from models.cswin_pyramid import PATCH, CSwinPyramid
from models.layers import ConvEmbed, ConvMerge
from models.pyramid import create_pyramid
from models.registry import pretrained_cfg
from models.similarity import Similarity
from models.sizes import hidden_width
from models.tokenwise import Mlp


class CSwinBlock(nn.Module):
    """Cross-shaped attention and an MLP, each a residual branch that begins with LayerNorm.

    Args:
        dim: channels.
        size: (height, width) of the feature map in tokens.
        num_heads: attention heads.
        stripe_width: width of the stripes in tokens; None for one branch over the whole feature map.
        mlp_ratio: ratio of the MLP's hidden width to ``dim``.
        drop_path: stochastic-depth rate of both branches.
        proj_drop: dropout rate of attention and MLP.
        attn_drop: dropout rate of the attention weights.
        **factory: device and dtype of the parameters.
    """

    def __init__(
        self,
        dim: int,
        size: tuple[int, int],
        num_heads: int,
        stripe_width: int | None,
        mlp_ratio: float,
        drop_path: float,
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
        **factory: Any,
    ):
        super().__init__()
        similarity = Similarity((dim // num_heads) ** -0.5)
        self.norm1 = nn.LayerNorm(dim, **factory)
        self.attn = CrossShapedAttention(
            dim, size, num_heads, stripe_width, similarity, attn_drop, proj_drop, **factory
        )
        self.norm2 = nn.LayerNorm(dim, **factory)
        self.mlp = Mlp(dim, hidden_width(dim, mlp_ratio), proj_drop, **factory)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, *size, dim)`` to the same shape."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def cswin_init_(module: nn.Module) -> None:
    """Initialise every Linear in ``module`` as the released code does; convolutions keep PyTorch's default."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class CSwin(CSwinPyramid):
    """CSWin as a timm model.

    Args:
        img_size: side of the image in pixels, or (height, width), a multiple of 4 * 2^(stages - 1).
        in_chans: image channels.
        num_classes: classes, or 0 for no classifier.
        embed_dim: channels of the first stage; each later stage doubles them.
        depths: blocks of each stage.
        num_heads: attention heads of each stage; an even number in all stages but the last.
        stripes: stripe width of each stage in tokens; the last stage attends over its whole feature map.
        mlp_ratio: ratio of the MLPs' hidden width to their channels.
        drop_path_rate: stochastic-depth rate of the last block; it grows linearly from 0 over the blocks.
        global_pool: ``"avg"``, ``"max"``, ``"avgmax"``, or ``""`` to keep the feature map.
        drop_rate: dropout rate before the classifier.
        proj_drop_rate: dropout rate of attention and MLP.
        attn_drop_rate: dropout rate of the attention weights.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        ModelError: if the sizes do not fit together.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 64,
        depths: tuple[int, ...] = (1, 2, 21, 1),
        num_heads: tuple[int, ...] = (2, 4, 8, 16),
        stripes: tuple[int, ...] = (1, 2, 7, 7),
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        factory: Any = {"device": device, "dtype": dtype}

        def norm(dim: int) -> nn.Module:
            return nn.LayerNorm(dim, **factory)

        def block(dim: int, size: tuple[int, int], heads: int, stripe: int | None, drop_path: float) -> nn.Module:
            return CSwinBlock(dim, size, heads, stripe, mlp_ratio, drop_path, proj_drop_rate, attn_drop_rate, **factory)

        super().__init__(
            img_size=img_size,
            in_chans=in_chans,
            num_classes=num_classes,
            embed_dim=embed_dim,
            depths=depths,
            num_heads=num_heads,
            stripes=stripes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            embed=lambda i, o: ConvEmbed(i, o, norm(o), kernel_size=7, stride=PATCH, padding=2, **factory),
            merge=lambda i, o: ConvMerge(i, o, norm(o), kernel_size=3, padding=1, **factory),
            block=block,
            norm=norm,
            init=cswin_init_,
            **factory,
        )


default_cfgs = generate_default_cfgs(
    {f"cswin_{size}.untrained": pretrained_cfg(crop_pct=0.9) for size in ("tiny", "small", "base")}
)


@register_model
def cswin_tiny(pretrained: bool = False, **kwargs: Any) -> CSwin:
    """CSWin-Tiny: 22.3 M parameters, 82.8 % top-1 on ImageNet-1K in the paper, with warm-up."""
    return create_pyramid(CSwin, "cswin_tiny", pretrained, {}, kwargs)


@register_model
def cswin_small(pretrained: bool = False, **kwargs: Any) -> CSwin:
    """CSWin-Small: 34.6 M parameters, 83.6 % in the paper, with warm-up."""
    return create_pyramid(CSwin, "cswin_small", pretrained, {"depths": (2, 4, 32, 2)}, kwargs)


@register_model
def cswin_base(pretrained: bool = False, **kwargs: Any) -> CSwin:
    """CSWin-Base: 77.4 M parameters, 84.2 % in the paper, with warm-up."""
    architecture = {"embed_dim": 96, "depths": (2, 4, 32, 2), "num_heads": (4, 8, 16, 32)}
    return create_pyramid(CSwin, "cswin_base", pretrained, architecture, kwargs)
