"""LipsFormer-Swin: the Lipschitz continuous hierarchical transformer of Qi et al., ICLR 2023.

A Swin-like pyramid whose windows never shift. Instead, two depthwise convolution branches in each block carry
information across window borders. The architecture is that of the authors' released code.
"""

from typing import Any

import torch
from timm.layers import to_2tuple
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from models.attention import WindowAttention
from models.layers import CenterNorm, ConvBranch, ConvEmbed
from models.lipsformer_parts import AttentionForm, Parts
from models.pyramid import Pyramid, build_stages, create_pyramid
from models.registry import pretrained_cfg
from models.similarity import Similarity
from models.sizes import check_heads, check_positive, check_side, hidden_width, resized_width
from models.tokenwise import Mlp, TokenLinear

TEMPERATURE = 10.0  # of the cosine attention, from the released code


class LipsFormerSwinBlock(nn.Module):
    """Two convolution branches, window attention and an MLP, each a weighted residual. Norms follow the last two.

    Args:
        dim: channels.
        num_heads: attention heads.
        window_size: side of the attention window in tokens.
        mlp_ratio: ratio of the MLP's hidden width to ``dim``.
        init_scale: initial value of the residual scales.
        drop_path: stochastic-depth rate of all four branches.
        similarity: how queries and keys are compared.
        parts: the norms and residuals.
        proj_drop: dropout rate of attention and MLP.
        attn_drop: dropout rate of the attention weights.
        **factory: device and dtype of the parameters.
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
        parts: Parts,
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
        **factory: Any,
    ):
        super().__init__()

        def residual(branch: nn.Module) -> nn.Module:
            return parts.make_residual(branch, dim, init_scale, drop_path, **factory)

        self.conv1 = residual(ConvBranch(dim, pointwise=True, **factory))
        self.conv2 = residual(ConvBranch(dim, pointwise=False, **factory))
        self.attn = residual(WindowAttention(dim, window_size, num_heads, similarity, attn_drop, proj_drop, **factory))
        self.norm1 = parts.make_norm(dim, **factory)
        self.mlp = residual(Mlp(dim, hidden_width(dim, mlp_ratio), proj_drop, **factory))
        self.norm2 = parts.make_norm(dim, **factory)
        self.has_center_norms = isinstance(self.norm1, CenterNorm)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, height, width, dim)`` to the same shape."""
        x = self.conv2(self.conv1(x))
        if self.has_center_norms:  # one kernel does both on a GPU
            x = self.attn(x, self.norm1.weight, self.norm1.bias)
            return self.mlp(x, self.norm2.weight, self.norm2.bias)
        return self.norm2(self.mlp(self.norm1(self.attn(x))))


class PatchMerging(nn.Module):
    """Halve the map: concatenate the four tokens of each 2x2 square, then a norm, then Linear to ``2 * dim``.

    Args:
        dim: input channels.
        norm: norm over ``4 * dim`` channels.
        **factory: device and dtype of the parameters.
    """

    def __init__(self, dim: int, norm: nn.Module, **factory: Any):
        super().__init__()
        self.norm = norm
        self.reduction = TokenLinear(4 * dim, 2 * dim, bias=False, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, height, width, dim)`` to ``(batch, height / 2, width / 2, 2 * dim)``."""
        return self.reduction(self.norm(self.side_by_side(x)))

    @staticmethod
    def side_by_side(x: Tensor) -> Tensor:
        """``(batch, height, width, dim)`` to ``(batch, height / 2, width / 2, 4 * dim)``."""
        batch, height, width, dim = x.shape
        # Order in a square, as in the released code: top left, bottom left, top right, bottom right.
        x = x.view(batch, height // 2, 2, width // 2, 2, dim).permute(0, 1, 3, 4, 2, 5)
        return x.reshape(batch, height // 2, width // 2, 4 * dim)


class LipsFormerSwin(Pyramid):
    """LipsFormer-Swin as a timm model.

    Args:
        img_size: side of the image in pixels, or (height, width), a multiple of patch_size * window_size *
            2^(stages - 1).
        patch_size: side of a patch in pixels.
        in_chans: image channels.
        num_classes: classes, or 0 for no classifier.
        embed_dim: channels of the first stage; each later stage doubles them.
        depths: blocks of each stage.
        num_heads: attention heads of each stage.
        window_size: side of the attention window in tokens.
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
        size = to_2tuple(img_size)
        check_positive(
            patch_size=patch_size, embed_dim=embed_dim, depths=depths, num_heads=num_heads, window_size=window_size
        )
        check_heads(embed_dim, depths, num_heads)
        _check_windows(size, patch_size, window_size, len(depths))
        factory: Any = {"device": device, "dtype": dtype}
        form, parts = AttentionForm(attention, TEMPERATURE, epsilon, nu), Parts(norm, residual, init)

        def block(stage: int, drop_path: float) -> nn.Module:
            return LipsFormerSwinBlock(
                dim=embed_dim * 2**stage,
                num_heads=num_heads[stage],
                window_size=window_size,
                mlp_ratio=mlp_ratio,
                init_scale=1 / sum(depths),
                drop_path=drop_path,
                similarity=form.similarity(embed_dim * 2**stage // num_heads[stage]),
                parts=parts,
                proj_drop=proj_drop_rate,
                attn_drop=attn_drop_rate,
                **factory,
            )

        def merge(stage: int) -> nn.Module:
            dim = embed_dim * 2 ** (stage - 1)
            return PatchMerging(dim, parts.make_norm(4 * dim, **factory), **factory)

        first_norm = parts.make_norm(embed_dim, **factory)
        super().__init__(
            img_size=size,
            patch_embed=ConvEmbed(in_chans, embed_dim, first_norm, patch_size, patch_size, **factory),
            stages=build_stages(depths, drop_path_rate, merge, block),
            norm=parts.make_norm(embed_dim * 2 ** (len(depths) - 1), **factory),
            in_chans=in_chans,
            embed_dim=embed_dim,
            reduction=patch_size,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            init=parts.init_,
            **factory,
        )
        self.window_size = window_size

    def set_input_size(self, img_size: int | tuple[int, int] | None = None, window_size: int | None = None) -> None:
        """Change the image size. If the window size changes, the bias tables are interpolated.

        Args:
            img_size: side in pixels, or (height, width); None keeps it.
            window_size: side of the attention window in tokens. None keeps it if it divides the new feature maps, and
                scales it with the maps otherwise.

        Raises:
            ModelError: if the sizes do not fit together; the model is then unchanged.
        """
        size = to_2tuple(img_size or self.img_size)
        smallest = self.feature_info[-1]["reduction"]
        before, after = (tuple(side // smallest for side in sides) for sides in (self.img_size, size))
        window = resized_width(self.window_size, before, after) if window_size is None else window_size
        check_positive(window_size=window)
        _check_windows(size, self.feature_info[0]["reduction"], window, len(self.feature_info))
        for module in self.modules():
            if isinstance(module, WindowAttention):
                module.set_window_size(window)
        self.window_size = window
        self._set_img_size(size, window_size=window)


def _check_windows(img_size: tuple[int, int], patch_size: int, window_size: int, stages: int) -> None:
    """Refuse image sizes unless the windows divide the feature map of every stage."""
    unit = patch_size * window_size * 2 ** (stages - 1)
    check_side(img_size, unit, f"patch {patch_size}, window {window_size} and {stages} stages")


default_cfgs = generate_default_cfgs(
    {
        "lipsformer_swin_mini.untrained": pretrained_cfg(input_size=(3, 28, 28), num_classes=10),
        "lipsformer_swin_tiny.untrained": pretrained_cfg(),
        "lipsformer_swin_small.untrained": pretrained_cfg(),
        "lipsformer_swin_base.untrained": pretrained_cfg(),
    }
)


@register_model
def lipsformer_swin_mini(pretrained: bool = False, **kwargs: Any) -> LipsFormerSwin:
    """LipsFormer-Swin for 28-pixel images, this project's own variant. It learns in minutes on two CPU cores."""
    architecture = {"img_size": 28, "patch_size": 2, "embed_dim": 40, "depths": (1, 2), "num_heads": (2, 4)}
    return create_pyramid(LipsFormerSwin, "lipsformer_swin_mini", pretrained, architecture, kwargs)


@register_model
def lipsformer_swin_tiny(pretrained: bool = False, **kwargs: Any) -> LipsFormerSwin:
    """LipsFormer-Swin-Tiny: 30.9 M parameters, 82.7 % top-1 on ImageNet-1K in the paper."""
    architecture = {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)}
    return create_pyramid(LipsFormerSwin, "lipsformer_swin_tiny", pretrained, architecture, kwargs)


@register_model
def lipsformer_swin_small(pretrained: bool = False, **kwargs: Any) -> LipsFormerSwin:
    """LipsFormer-Swin-Small: 54.5 M parameters."""
    architecture = {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)}
    return create_pyramid(LipsFormerSwin, "lipsformer_swin_small", pretrained, architecture, kwargs)


@register_model
def lipsformer_swin_base(pretrained: bool = False, **kwargs: Any) -> LipsFormerSwin:
    """LipsFormer-Swin-Base: 96.0 M parameters."""
    architecture = {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)}
    return create_pyramid(LipsFormerSwin, "lipsformer_swin_base", pretrained, architecture, kwargs)
