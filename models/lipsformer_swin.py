"""LipsFormer-Swin: the Lipschitz continuous hierarchical transformer of Qi et al., ICLR 2023.

A Swin-like pyramid with windows that never shift: two depthwise convolution branches in each block carry
information across window borders instead. Architecture as released by the authors.
"""

from typing import Any

from timm.layers import to_2tuple
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from models.attention import Similarity, WindowAttention, lipsformer_similarity
from models.layers import CenterNorm, ConvBranch, ConvEmbed, WeightedResidual
from models.pyramid import Pyramid, build_stages
from models.registry import pretrained_cfg
from models.sizes import check_heads, check_positive, check_side, hidden_width
from models.spectral import spectral_init_
from models.tokenwise import Mlp, TokenLinear

TEMPERATURE = 10.0  # of the cosine attention, in the released code


class LipsFormerSwinBlock(nn.Module):
    """Two convolution branches, window attention and an MLP, each a weighted residual; no norm comes first.

    Args:
        dim: channels.
        num_heads: attention heads.
        window_size: side of the attention window in tokens.
        mlp_ratio: hidden width of the MLP over ``dim``.
        init_scale: starting value of the residual scales.
        drop_path: stochastic-depth rate of all four branches.
        similarity: of the attention.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int,
        mlp_ratio: float,
        init_scale: float,
        drop_path: float,
        similarity: Similarity,
    ):
        super().__init__()

        def residual(branch: nn.Module) -> WeightedResidual:
            return WeightedResidual(branch, dim, init_scale, drop_path)

        self.conv1 = residual(ConvBranch(dim, pointwise=True))
        self.conv2 = residual(ConvBranch(dim, pointwise=False))
        self.attn = residual(WindowAttention(dim, window_size, num_heads, similarity))
        self.norm1 = CenterNorm(dim)
        self.mlp = residual(Mlp(dim, hidden_width(dim, mlp_ratio)))
        self.norm2 = CenterNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, height, width, dim)`` to the same shape."""
        x = self.conv2(self.conv1(x))
        x = self.norm1(self.attn(x))
        return self.norm2(self.mlp(x))


class PatchMerging(nn.Module):
    """Halve the map: the four tokens of each 2x2 square side by side, CenterNorm, Linear to twice the channels.

    Args:
        dim: channels going in.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.norm = CenterNorm(4 * dim)
        self.reduction = TokenLinear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, height, width, dim)`` to ``(batch, height / 2, width / 2, 2 * dim)``."""
        return self.reduction(self.norm(self.side_by_side(x)))

    @staticmethod
    def side_by_side(x: Tensor) -> Tensor:
        """``(batch, height, width, dim)`` to ``(batch, height / 2, width / 2, 4 * dim)``."""
        batch, height, width, dim = x.shape
        # The released order inside a square: top left, bottom left, top right, bottom right.
        x = x.view(batch, height // 2, 2, width // 2, 2, dim).permute(0, 1, 3, 4, 2, 5)
        return x.reshape(batch, height // 2, width // 2, 4 * dim)


class LipsFormerSwin(Pyramid):
    """LipsFormer-Swin as a timm model.

    Args:
        img_size: side of the image in pixels, or (height, width); patch and, at each stage, window must divide it.
        patch_size: side of a patch in pixels.
        in_chans: image channels.
        num_classes: classes, or 0 for no classifier.
        embed_dim: channels of the first stage; each later stage doubles them.
        depths: blocks of each stage.
        num_heads: attention heads of each stage.
        window_size: side of the attention window in tokens.
        mlp_ratio: hidden width of the MLPs over their channels.
        attention: ``"released"`` or ``"certified"``; see :func:`models.attention.lipsformer_similarity`.
        epsilon: ε of certified attention.
        nu: ν of certified attention.
        drop_path_rate: stochastic-depth rate of the last block; earlier blocks have linearly less.
        global_pool: ``"avg"``, or ``""`` to keep the map.

    Raises:
        ModelError: where the sizes do not fit together.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 96,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        num_heads: tuple[int, ...] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        attention: str = "released",
        epsilon: float = 1e-6,
        nu: float = 1.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
    ):
        size = to_2tuple(img_size)
        check_positive(
            patch_size=patch_size, embed_dim=embed_dim, depths=depths, num_heads=num_heads, window_size=window_size
        )
        check_heads(embed_dim, depths, num_heads)
        unit = patch_size * window_size * 2 ** (len(depths) - 1)
        check_side(size, unit, f"patch {patch_size}, window {window_size} and {len(depths)} stages")
        similarity = lipsformer_similarity(attention, TEMPERATURE, epsilon, nu)

        def block(stage: int, drop_path: float) -> nn.Module:
            dim, heads = embed_dim * 2**stage, num_heads[stage]
            return LipsFormerSwinBlock(dim, heads, window_size, mlp_ratio, 1 / sum(depths), drop_path, similarity)

        num_features = embed_dim * 2 ** (len(depths) - 1)
        super().__init__(
            img_size=size,
            patch_embed=ConvEmbed(in_chans, embed_dim, CenterNorm(embed_dim), patch_size, stride=patch_size),
            stages=build_stages(
                depths, drop_path_rate, lambda stage: PatchMerging(embed_dim * 2 ** (stage - 1)), block
            ),
            norm=CenterNorm(num_features),
            num_features=num_features,
            num_classes=num_classes,
            global_pool=global_pool,
            init=spectral_init_,
        )


default_cfgs = generate_default_cfgs(
    {
        "lipsformer_swin_mini.untrained": pretrained_cfg(input_size=(3, 28, 28), num_classes=10),
        "lipsformer_swin_tiny.untrained": pretrained_cfg(),
        "lipsformer_swin_small.untrained": pretrained_cfg(),
        "lipsformer_swin_base.untrained": pretrained_cfg(),
    }
)


def _create(variant: str, pretrained: bool, architecture: dict[str, Any], kwargs: dict[str, Any]) -> LipsFormerSwin:
    return build_model_with_cfg(LipsFormerSwin, variant, pretrained, **(architecture | kwargs))


@register_model
def lipsformer_swin_mini(pretrained: bool = False, **kwargs: Any) -> LipsFormerSwin:
    """LipsFormer-Swin for 28-pixel images, of this project: small enough to learn on two CPU cores in minutes."""
    architecture = {"img_size": 28, "patch_size": 2, "embed_dim": 40, "depths": (1, 2), "num_heads": (2, 4)}
    return _create("lipsformer_swin_mini", pretrained, architecture, kwargs)


@register_model
def lipsformer_swin_tiny(pretrained: bool = False, **kwargs: Any) -> LipsFormerSwin:
    """LipsFormer-Swin-Tiny: 30.9 M parameters, 82.7 % top-1 on ImageNet-1K in the paper."""
    architecture = {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)}
    return _create("lipsformer_swin_tiny", pretrained, architecture, kwargs)


@register_model
def lipsformer_swin_small(pretrained: bool = False, **kwargs: Any) -> LipsFormerSwin:
    """LipsFormer-Swin-Small: 54.5 M parameters."""
    architecture = {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)}
    return _create("lipsformer_swin_small", pretrained, architecture, kwargs)


@register_model
def lipsformer_swin_base(pretrained: bool = False, **kwargs: Any) -> LipsFormerSwin:
    """LipsFormer-Swin-Base: 96.0 M parameters."""
    architecture = {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)}
    return _create("lipsformer_swin_base", pretrained, architecture, kwargs)
