"""LipsFormer-CSwin: LipsFormer's blocks with cross-shaped attention (Qi et al., ICLR 2023).

The architecture is in the history of the authors' repository. The unused norm of their blocks is left out.
"""

from typing import Any

import torch
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from models.attention import CrossShapedAttention
from models.cswin_pyramid import PATCH, CSwinPyramid
from models.layers import CenterNorm, ConvBranch, ConvEmbed, ConvMerge
from models.lipsformer_parts import AttentionForm, Parts
from models.pyramid import create_pyramid
from models.registry import pretrained_cfg
from models.similarity import Similarity
from models.sizes import hidden_width
from models.tokenwise import Mlp

TEMPERATURE = 12.0  # of the cosine attention
INIT_SCALE = 0.2  # of the residuals; the authors' code uses this value and not the one in its configuration


class LipsFormerCSwinBlock(nn.Module):
    """Two convolution branches, cross-shaped attention and an MLP, each a weighted residual, then one CenterNorm.

    Args:
        dim: channels.
        size: (height, width) of the feature map in tokens.
        num_heads: attention heads.
        stripe_width: width of the stripes in tokens; None for one branch over the whole feature map.
        mlp_ratio: ratio of the MLP's hidden width to ``dim``.
        drop_path: stochastic-depth rate of all four branches.
        similarity: how queries and keys are compared.
        parts: the norm and residuals.
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
        similarity: Similarity,
        parts: Parts,
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
        **factory: Any,
    ):
        super().__init__()

        def residual(branch: nn.Module) -> nn.Module:
            return parts.make_residual(branch, dim, INIT_SCALE, drop_path, **factory)

        self.conv1 = residual(ConvBranch(dim, pointwise=True, **factory))
        self.conv2 = residual(ConvBranch(dim, pointwise=False, **factory))
        self.attn = residual(
            CrossShapedAttention(dim, size, num_heads, stripe_width, similarity, attn_drop, proj_drop, **factory)
        )
        self.mlp = residual(Mlp(dim, hidden_width(dim, mlp_ratio), proj_drop, **factory))
        self.norm = parts.make_norm(dim, **factory)
        self.has_center_norm = isinstance(self.norm, CenterNorm)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, *size, dim)`` to the same shape."""
        x = self.attn(self.conv2(self.conv1(x)))
        if self.has_center_norm:  # one kernel does both on a GPU
            return self.mlp(x, self.norm.weight, self.norm.bias)
        return self.norm(self.mlp(x))


class LipsFormerCSwin(CSwinPyramid):
    """LipsFormer-CSwin as a timm model.

    Args:
        img_size: side of the image in pixels, or (height, width), a multiple of 4 * 2^(stages - 1).
        in_chans: image channels.
        num_classes: classes, or 0 for no classifier.
        embed_dim: channels of the first stage; each later stage doubles them.
        depths: blocks of each stage.
        num_heads: attention heads of each stage; an even number in all stages but the last.
        stripes: stripe width of each stage in tokens; the last stage attends over its whole feature map.
        mlp_ratio: ratio of the MLPs' hidden width to their channels.
        attention: ``"released"``, ``"certified"`` or ``"dot"``; see :class:`models.lipsformer_parts.AttentionForm`.
        epsilon: ε of certified attention.
        nu: ν of certified attention.
        norm: ``"centernorm"`` or ``"layernorm"``; see :class:`models.lipsformer_parts.Parts`, also for the next two.
        residual: ``"weighted"`` or ``"plain"``.
        init: ``"spectral"`` or ``"xavier"``.
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
        attention: str = "released",
        epsilon: float = 1e-6,
        nu: float = 1.0,
        norm: str = "centernorm",
        residual: str = "weighted",
        init: str = "spectral",
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        factory: Any = {"device": device, "dtype": dtype}
        form, parts = AttentionForm(attention, TEMPERATURE, epsilon, nu), Parts(norm, residual, init)
        make_norm = parts.make_norm

        def block(dim: int, size: tuple[int, int], heads: int, stripe: int | None, drop_path: float) -> nn.Module:
            # The authors' code divides a branch's output by the square root of its number of heads.
            branch_heads = heads if stripe is None else heads // 2
            similarity = form.similarity(dim // heads, branch_heads**-0.5)
            drops = (proj_drop_rate, attn_drop_rate)
            return LipsFormerCSwinBlock(
                dim, size, heads, stripe, mlp_ratio, drop_path, similarity, parts, *drops, **factory
            )

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
            embed=lambda i, o: ConvEmbed(i, o, make_norm(o, **factory), PATCH, stride=PATCH, **factory),
            merge=lambda i, o: ConvMerge(i, o, make_norm(o, **factory), kernel_size=2, **factory),
            block=block,
            norm=lambda _: nn.Identity(),
            init=parts.init_,
            **factory,
        )


default_cfgs = generate_default_cfgs({"lipsformer_cswin_tiny.untrained": pretrained_cfg()})


@register_model
def lipsformer_cswin_tiny(pretrained: bool = False, **kwargs: Any) -> LipsFormerCSwin:
    """LipsFormer-CSwin-Tiny: 23.8 M parameters, 83.5 % top-1 on ImageNet-1K in the paper."""
    return create_pyramid(LipsFormerCSwin, "lipsformer_cswin_tiny", pretrained, {}, kwargs)
