"""Vision transformers for comparison: DeiT, Pre-LN and Post-LN, stems and stabilizers, on timm's implementation.

With default options, parameter names and arithmetic are timm's, so timm's weights load.
"""

from functools import partial
from typing import Any

import torch
from timm.data import IMAGENET_INCEPTION_MEAN as HALF
from timm.layers import to_2tuple
from timm.models import generate_default_cfgs, register_model
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from models.errors import ModelError
from models.norms import NORMS
from models.positions import POSITIONS, sincos2d
from models.registry import create_vit, pretrained_cfg
from models.sizes import check_choice, check_image, check_positive, check_side, hidden_width
from models.stabilizers import (
    STABILIZERS,
    begin_with_power_iteration_,
    reparametrize_,
    sigma_reparam_,
    stabilizer_arguments,
    take_away_,
)
from models.stems import STEMS, stem_layer
from models.vit_blocks import PostNormBlock, with_drop_path
from models.vit_init import deit_init_, separate_qkv_, theory_init_

torch.fx.wrap("check_image")  # FX traces calls from this module as one node, so the graph keeps the check

ACTIVATIONS: dict[str, Any] = {"gelu": nn.GELU, "gelu_tanh": partial(nn.GELU, approximate="tanh"), "relu": nn.ReLU}
NORM_POSITIONS = ("pre", "post")
INITS = ("timm", "deit", "jax", "theory")
POOLS = ("token", "avg", "max", "avgmax", "map", "prr", "")


class ViT(VisionTransformer):
    """timm's vision transformer with a choice of norm position, stem, stabilizer and initialisation.

    Args:
        img_size: side of the image in pixels, or (height, width); ``patch_size`` divides it.
        patch_size: side of a patch in pixels, or (height, width).
        embed_dim: channels, divisible by ``num_heads``.
        depth: blocks.
        num_heads: attention heads.
        mlp_ratio: ratio of the MLPs' hidden width to ``embed_dim``.
        norm: one of ``NORMS``.
        norm_position: ``pre``: ``x + f(LN(x))`` and a final norm; ``post``: ``LN(x + f(x))`` and no final norm.
        activation: activation of the MLPs, one of ``ACTIVATIONS``.
        stem: one of ``STEMS``.
        stem_width: channels inside a convolutional stem.
        stabilizer: one of ``STABILIZERS``.
        pos_embed: ``learn``, or ``sincos2d`` for a fixed table of the patches; the class token then has no position.
        init: ``timm``; ``deit`` for the tokens of :func:`deit_init_`; ``jax`` for that of Google's code; or ``theory``
            for :func:`theory_init_`.
        drop_path_rate: stochastic depth of the last block.
        constant_drop_path: whether all blocks have this rate. Otherwise it grows from 0 in the first one, as in timm.
        global_pool: one of ``POOLS``; ``""`` keeps the tokens.
        **kwargs: arguments of timm's ``VisionTransformer``.

    Raises:
        ModelError: if an option is unknown or sizes do not fit together.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        norm: str = "layernorm",
        norm_position: str = "pre",
        activation: str = "gelu",
        stem: str = "patchify",
        stem_width: int = 64,
        stabilizer: str = "none",
        pos_embed: str = "learn",
        init: str = "timm",
        drop_path_rate: float = 0.0,
        constant_drop_path: bool = False,
        global_pool: str = "token",
        **kwargs: Any,
    ):
        check_choice("norm", norm, tuple(NORMS))
        check_choice("norm_position", norm_position, NORM_POSITIONS)
        check_choice("activation", activation, ACTIVATIONS)
        check_choice("stem", stem, STEMS)
        check_choice("stabilizer", stabilizer, STABILIZERS)
        check_choice("pos_embed", pos_embed, POSITIONS)
        check_choice("init", init, INITS)
        check_choice("global_pool", global_pool, POOLS)
        sizes = {"patch_size": patch_size, "embed_dim": embed_dim, "depth": depth, "num_heads": num_heads}
        check_positive(**sizes, stem_width=stem_width)
        hidden_width(embed_dim, mlp_ratio)
        if embed_dim % num_heads:
            raise ModelError(
                f"model.num_heads={num_heads} does not divide model.embed_dim={embed_dim}: change one of them"
            )
        if pos_embed == "sincos2d" and (embed_dim % 4 or embed_dim < 8):
            raise ModelError(f"model.pos_embed=sincos2d needs a model.embed_dim that 4 divides, not {embed_dim}")
        if pos_embed == "sincos2d" and kwargs.get("dynamic_img_size"):
            raise ModelError("model.pos_embed=sincos2d is for one image size: leave dynamic_img_size out")
        _check_patches(img_size, patch_size)
        if stabilizer == "sigma_reparam" and norm != "layernorm":
            raise ModelError(
                f"model.stabilizer=sigma_reparam removes all norms, so model.norm={norm} does nothing: leave it out"
            )
        is_post = norm_position == "post"
        block: Any = PostNormBlock if is_post else Block
        options = {
            "norm_layer": NORMS[norm],
            "block_fn": with_drop_path(block, drop_path_rate) if constant_drop_path else block,
            "drop_path_rate": drop_path_rate,
            "final_norm": not is_post,
            "act_layer": ACTIVATIONS[activation],
            "embed_layer": stem_layer(stem, stem_width),
            "global_pool": global_pool,
            "weight_init": "jax" if init == "jax" else "",
            **stabilizer_arguments(stabilizer),
        }
        self.has_fixed_positions = pos_embed == "sincos2d"
        if self.has_fixed_positions:
            options["no_embed_class"] = True
        # Before timm's constructor, which calls `init_weights`.
        self.init, self.stabilizer = init, stabilizer
        super().__init__(img_size=img_size, mlp_ratio=mlp_ratio, **(sizes | options | kwargs))
        self._fix_positions()
        if stabilizer == "sigma_reparam":
            sigma_reparam_(self)

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Initialise all weights again. A model that was built on the meta device needs this after ``to_empty``.

        Args:
            mode: timm's name of an initialisation; empty for the model's own.
            needs_reset: whether to call ``reset_parameters()`` of the modules that have it.
        """
        stabilized = take_away_(self)
        super().init_weights(mode, needs_reset)
        if self.init == "deit":
            deit_init_(self)
        if self.init == "theory":
            theory_init_(self)
        if self.init == "jax":
            separate_qkv_(self)
        for layer in stabilized:
            reparametrize_(layer)
        self._fix_positions()

    def _fix_positions(self) -> None:
        """Replace timm's learned position embedding by the fixed table, which checkpoints do not hold."""
        if self.has_fixed_positions:
            rows, columns = self.patch_embed.grid_size
            table, kept = sincos2d(rows, columns, self.embed_dim), self.pos_embed
            del self.pos_embed
            self.register_buffer("pos_embed", table.to(kept), persistent=False)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Images ``(batch, in_chans, *img_size)`` to logits ``(batch, num_classes)``.

        Raises:
            ModelError: if the image size is not the model's.
        """
        if not self.dynamic_img_size:
            x = check_image(x, self.patch_embed.img_size)
        return self.forward_head(self.forward_features(x, attn_mask=attn_mask, is_causal=is_causal))

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """Change the image size. A learned position embedding is interpolated as in timm.

        Args:
            img_size: side in pixels, or (height, width); None keeps it.
            patch_size: side in pixels, or (height, width), to which timm resamples the patch embedding; None keeps it.
                Convolutional stems cannot change it.

        Raises:
            ModelError: if the sizes do not fit together; the model is then unchanged.
        """
        patch = to_2tuple(patch_size or self.patch_embed.patch_size)
        if patch != self.patch_embed.patch_size and not isinstance(self.patch_embed.proj, nn.Conv2d):
            raise ModelError("a convolutional stem keeps its patch size: build the model with another model.patch_size")
        size = to_2tuple(img_size or self.patch_embed.img_size)
        _check_patches(size, patch)
        before = self.patch_embed.proj
        super().set_input_size(img_size=size, patch_size=patch)
        self._fix_positions()
        # For another patch size timm makes a new, plain convolution.
        if self.stabilizer == "sigma_reparam" and self.patch_embed.proj is not before:
            reparametrize_(self.patch_embed.proj)
            begin_with_power_iteration_(self)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one for ``num_classes`` classes, with the model's stabilizer."""
        if global_pool is not None:
            check_choice("global_pool", global_pool, POOLS)
        super().reset_classifier(num_classes, global_pool)
        if self.stabilizer == "sigma_reparam":
            reparametrize_(self.head)


def _check_patches(img_size: int | tuple[int, int], patch_size: int | tuple[int, int]) -> None:
    """Refuse image sizes that the patch size does not divide."""
    advice = "; or set a patch size that divides it"
    for side, unit in zip(to_2tuple(img_size), to_2tuple(patch_size), strict=True):
        check_side((side,), unit, f"model.patch_size={unit}", advice)


default_cfgs = generate_default_cfgs(
    {
        "deit_tiny.untrained": pretrained_cfg(pool_size=None),
        "deit_small.untrained": pretrained_cfg(pool_size=None),
        "deit_base.untrained": pretrained_cfg(pool_size=None),
        "deit3_small.untrained": pretrained_cfg(pool_size=None, crop_pct=1.0),
        "deit_small_convstem.untrained": pretrained_cfg(pool_size=None, first_conv="patch_embed.proj.0"),
        "vit_preln_small.untrained": pretrained_cfg(pool_size=None),
        "vit_postln_small.untrained": pretrained_cfg(pool_size=None),
        "vit_preln_theory.untrained": pretrained_cfg(pool_size=None),
        "vit_postln_theory.untrained": pretrained_cfg(pool_size=None),
        "vit_small_sincos.untrained": pretrained_cfg(pool_size=None, mean=HALF, std=HALF, interpolation="bilinear"),
    }
)

_SMALL = {"patch_size": 16, "embed_dim": 384, "depth": 12, "num_heads": 6}
_DEIT = _SMALL | {"init": "deit"}
_THEORY = {"embed_dim": 256, "depth": 6, "num_heads": 1, "mlp_ratio": 1.0, "activation": "relu", "init": "theory"}


@register_model
def deit_tiny(pretrained: bool = False, **kwargs: Any) -> ViT:
    """DeiT-Ti (Touvron et al., ICML 2021): 5.7 M parameters, 72.2 % top-1 on ImageNet-1K in the paper."""
    return create_vit(ViT, "deit_tiny", pretrained, _DEIT | {"embed_dim": 192, "num_heads": 3}, kwargs)


@register_model
def deit_small(pretrained: bool = False, **kwargs: Any) -> ViT:
    """DeiT-S: 22.1 M parameters, 79.8 % top-1."""
    return create_vit(ViT, "deit_small", pretrained, _DEIT, kwargs)


@register_model
def deit_base(pretrained: bool = False, **kwargs: Any) -> ViT:
    """DeiT-B: 86.6 M parameters, 81.8 % top-1."""
    return create_vit(ViT, "deit_base", pretrained, _DEIT | {"embed_dim": 768, "num_heads": 12}, kwargs)


@register_model
def deit3_small(pretrained: bool = False, **kwargs: Any) -> ViT:
    """DeiT-III-S (Touvron et al., "DeiT III", ECCV 2022): 22.1 M parameters, 81.4 % top-1 after 800 epochs."""
    changes = {"init_values": 1e-4, "no_embed_class": True, "constant_drop_path": True}
    return create_vit(ViT, "deit3_small", pretrained, _DEIT | changes, kwargs)


@register_model
def deit_small_convstem(pretrained: bool = False, **kwargs: Any) -> ViT:
    """DeiT-S with the scaled-ReLU stem (Wang et al., AAAI 2022): 23.4 M parameters."""
    return create_vit(ViT, "deit_small_convstem", pretrained, _DEIT | {"stem": "scaled_relu"}, kwargs)


@register_model
def vit_preln_small(pretrained: bool = False, **kwargs: Any) -> ViT:
    """ViT-S with Pre-LN, the architecture of DeiT-S: 22.1 M parameters."""
    return create_vit(ViT, "vit_preln_small", pretrained, _SMALL, kwargs)


@register_model
def vit_postln_small(pretrained: bool = False, **kwargs: Any) -> ViT:
    """ViT-S with Post-LN, as in the original transformer: 22.0 M parameters."""
    return create_vit(ViT, "vit_postln_small", pretrained, _SMALL | {"norm_position": "post"}, kwargs)


@register_model
def vit_preln_theory(pretrained: bool = False, **kwargs: Any) -> ViT:
    """The Pre-LN transformer of the theory of Xiong et al. (ICML 2020, section 3.2): one head, ReLU, d_ff = d."""
    return create_vit(ViT, "vit_preln_theory", pretrained, _THEORY, kwargs)


@register_model
def vit_postln_theory(pretrained: bool = False, **kwargs: Any) -> ViT:
    """The Post-LN transformer of the same theory."""
    return create_vit(ViT, "vit_postln_theory", pretrained, _THEORY | {"norm_position": "post"}, kwargs)


@register_model
def vit_small_sincos(pretrained: bool = False, **kwargs: Any) -> ViT:
    """ViT-S/16 of Beyer et al. (arXiv:2205.01580): 22.0 M parameters, 76.7 % top-1 after 90 epochs.

    Fixed positions, no class token, the mean of all tokens after the last norm, and one linear layer as head.
    """
    plain = {"class_token": False, "global_pool": "avg", "fc_norm": False}
    google = {"pos_embed": "sincos2d", "init": "jax", "activation": "gelu_tanh"}
    return create_vit(ViT, "vit_small_sincos", pretrained, _SMALL | plain | google, kwargs)
