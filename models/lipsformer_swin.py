"""LipsFormer-Swin: the Lipschitz continuous hierarchical transformer of Qi et al., ICLR 2023.

A Swin-like pyramid with windows that never shift: two depthwise convolution branches in each block carry
information across window borders instead. Architecture as released by the authors.
"""

from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import Mlp, calculate_drop_path_rates, to_2tuple
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint_sequential

from models.attention import WindowAttention
from models.errors import ModelError
from models.layers import CenterNorm, ConvBranch, PatchEmbed, WeightedResidual
from models.spectral import spectral_init_


class LipsFormerSwinBlock(nn.Module):
    """Two convolution branches, window attention and an MLP, each a weighted residual; no norm comes first.

    Args:
        dim: channels.
        num_heads: attention heads.
        window_size: side of the attention window in tokens.
        mlp_ratio: hidden width of the MLP over ``dim``.
        init_scale: starting value of the residual scales.
        drop_path: stochastic-depth rate of all four branches.
    """

    def __init__(
        self, dim: int, num_heads: int, window_size: int, mlp_ratio: float, init_scale: float, drop_path: float
    ):
        super().__init__()

        def residual(branch: nn.Module) -> WeightedResidual:
            return WeightedResidual(branch, dim, init_scale, drop_path)

        self.conv1 = residual(ConvBranch(dim, pointwise=True))
        self.conv2 = residual(ConvBranch(dim, pointwise=False))
        self.attn = residual(WindowAttention(dim, window_size, num_heads))
        self.norm1 = CenterNorm(dim)
        self.mlp = residual(Mlp(dim, int(dim * mlp_ratio)))
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
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, height, width, dim)`` to ``(batch, height / 2, width / 2, 2 * dim)``."""
        batch, height, width, dim = x.shape
        # The released order inside a square: top left, bottom left, top right, bottom right.
        x = x.view(batch, height // 2, 2, width // 2, 2, dim).permute(0, 1, 3, 4, 2, 5)
        return self.reduction(self.norm(x.reshape(batch, height // 2, width // 2, 4 * dim)))


class LipsFormerSwin(nn.Module):
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
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
    ):
        super().__init__()
        self.img_size = to_2tuple(img_size)
        _check_geometry(self.img_size, patch_size, embed_dim, depths, num_heads, window_size)
        self.num_classes = num_classes
        self.global_pool = global_pool
        self.num_features = self.head_hidden_size = embed_dim * 2 ** (len(depths) - 1)
        self.grad_checkpointing = False
        self.patch_embed = PatchEmbed(in_chans, embed_dim, patch_size)
        stages: list[nn.Sequential] = []
        ramp: Any = calculate_drop_path_rates(drop_path_rate, sum(depths))
        rates_by_stage = [[ramp.pop(0) for _ in range(depth)] for depth in depths]
        for stage, rates in enumerate(rates_by_stage):
            dim = embed_dim * 2**stage
            blocks: list[nn.Module] = [PatchMerging(dim // 2)] if stage > 0 else []
            for rate in rates:
                blocks.append(LipsFormerSwinBlock(dim, num_heads[stage], window_size, mlp_ratio, 1 / sum(depths), rate))
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.norm = CenterNorm(self.num_features)
        self.head = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()
        spectral_init_(self)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are no weights in the sense of weight decay: the position-bias tables."""
        return {name for name, _ in self.named_parameters() if name.endswith("relative_position_bias_table")}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block's activations in the backward pass instead of keeping them."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one, spectrally initialised, for ``num_classes`` classes."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = global_pool
        device = self.norm.weight.device
        self.head = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()
        spectral_init_(self.head)
        self.head.to(device)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images ``(batch, in_chans, *img_size)`` to tokens ``(batch, height, width, num_features)``.

        Raises:
            ModelError: if the image is of another size than the model was built for.
        """
        if x.shape[-2:] != self.img_size:
            raise ModelError(
                f"the model takes images of {self.img_size} pixels and got {tuple(x.shape[-2:])}: "
                f"set model.img_size (it follows data.crop) or resize the images"
            )
        x = self.patch_embed(x)
        if self.grad_checkpointing and self.training:
            blocks = [block for stage in self.stages.children() for block in stage.children()]
            x = checkpoint_sequential(blocks, len(blocks), x, use_reentrant=False)
        else:
            x = self.stages(x)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """``(batch, height, width, num_features)`` to ``(batch, num_classes)``."""
        if self.global_pool == "avg":
            x = x.mean(dim=(1, 2))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(batch, in_chans, *img_size)`` to logits ``(batch, num_classes)``."""
        return self.forward_head(self.forward_features(x))


def _check_geometry(
    img_size: tuple[int, int],
    patch_size: int,
    embed_dim: int,
    depths: tuple[int, ...],
    num_heads: tuple[int, ...],
    window_size: int,
) -> None:
    """Refuse sizes that do not fit together, in one line that names sizes that would."""
    if len(depths) != len(num_heads):
        raise ModelError(f"model.depths has {len(depths)} stages and model.num_heads {len(num_heads)}: give one each")
    for stage, heads in enumerate(num_heads):
        if (embed_dim * 2**stage) % heads:
            raise ModelError(f"stage {stage + 1}: {heads} heads do not divide {embed_dim * 2**stage} channels")
    unit = patch_size * window_size * 2 ** (len(depths) - 1)
    for side in img_size:
        if side % unit:
            below = side // unit * unit
            near = " or ".join(str(size) for size in (below, below + unit) if size > 0)
            raise ModelError(
                f"image size {side} does not fit: with patch {patch_size}, window {window_size} and "
                f"{len(depths)} stages it must be a multiple of {unit}, such as {near}"
            )


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "fixed_input_size": True,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "apache-2.0",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "lipsformer_swin_mini.untrained": _cfg(input_size=(3, 28, 28), num_classes=10),
        "lipsformer_swin_tiny.untrained": _cfg(),
        "lipsformer_swin_small.untrained": _cfg(),
        "lipsformer_swin_base.untrained": _cfg(),
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
