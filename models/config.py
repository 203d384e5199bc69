"""The options of models/: one dataclass for each family, so that an option of another family is refused.

``metadata`` holds the limits and choices of an option. The models check their arguments themselves as well, because
timm can build them without these options.
"""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from models.kernels import KERNELS
from models.lipsformer_parts import ATTENTIONS, INITS, NORMS, RESIDUALS
from models.norms import NORMS as VIT_NORMS
from models.positions import POSITIONS
from models.stabilizers import STABILIZERS
from models.stems import STEMS
from models.vit import ACTIVATIONS, NORM_POSITIONS
from models.vit import INITS as VIT_INITS


@dataclass
class ModelConfig:
    """Options of every model (``model.*``)."""

    name: str = MISSING  # a model of this project or of timm
    num_classes: int | None = field(default=None, metadata={"above": 0})  # null: the classes of the data
    img_size: int | None = field(default=None, metadata={"above": 0})  # null: data.crop
    drop_path_rate: float = field(default=0.0, metadata={"least": 0, "most": 1})  # drop path (stochastic depth)
    grad_checkpointing: bool = False  # recompute activations in the backward pass: less memory, more time


@dataclass
class LipsFormerOptions:
    """What all LipsFormers have; see :mod:`models.lipsformer_parts`."""

    # certified: also normalises the values, which makes the Lipschitz bound finite | dot: as other transformers
    attention: str = field(default="released", metadata={"choices": ATTENTIONS})
    epsilon: float = 1e-6  # ε of certified attention: a smaller one is closer to cosines, but its bound is larger
    nu: float = 1.0  # factor of certified attention's output
    norm: str = field(default="centernorm", metadata={"choices": tuple(NORMS)})
    residual: str = field(default="weighted", metadata={"choices": tuple(RESIDUALS)})
    init: str = field(default="spectral", metadata={"choices": tuple(INITS)})
    # Eager training on a GPU. auto: the Triton kernel where it is faster | triton | torch
    kernels: str = field(default="auto", metadata={"choices": KERNELS, "may_change": True})


@dataclass
class LipsFormerSwinConfig(LipsFormerOptions, ModelConfig):
    """LipsFormer-Swin; see :class:`models.lipsformer_swin.LipsFormerSwin`."""

    patch_size: int = 4
    embed_dim: int = 96
    depths: list[int] = field(default_factory=lambda: [2, 2, 6, 2])
    num_heads: list[int] = field(default_factory=lambda: [3, 6, 12, 24])
    window_size: int = 7
    mlp_ratio: float = 4.0


@dataclass
class CSwinConfig(ModelConfig):
    """CSWin; see :class:`models.cswin.CSwin`."""

    embed_dim: int = 64
    depths: list[int] = field(default_factory=lambda: [1, 2, 21, 1])
    num_heads: list[int] = field(default_factory=lambda: [2, 4, 8, 16])
    stripes: list[int] = field(default_factory=lambda: [1, 2, 7, 7])
    mlp_ratio: float = 4.0


@dataclass
class LipsFormerCSwinConfig(LipsFormerOptions, CSwinConfig):
    """LipsFormer-CSwin; see :class:`models.lipsformer_cswin.LipsFormerCSwin`."""


@dataclass
class ViTConfig(ModelConfig):
    """DeiT, Pre-LN and Post-LN vision transformers; see :class:`models.vit.ViT`."""

    patch_size: int = 16
    embed_dim: int = 384
    depth: int = 12
    num_heads: int = 6
    mlp_ratio: float = 4.0
    norm: str = field(default="layernorm", metadata={"choices": tuple(VIT_NORMS)})
    norm_position: str = field(default="pre", metadata={"choices": NORM_POSITIONS})
    activation: str = field(default="gelu", metadata={"choices": tuple(ACTIVATIONS)})
    stem: str = field(default="patchify", metadata={"choices": STEMS})
    stem_width: int = 64  # channels of the convolutional stems
    # sigma_reparam removes all norms.
    stabilizer: str = field(default="none", metadata={"choices": STABILIZERS})
    pos_embed: str = field(default="learn", metadata={"choices": POSITIONS})  # sincos2d: a fixed table
    # deit: timm's, with the class token of DeiT's code; jax: as in Google's code; theory: what the theory of Pre-LN and
    # Post-LN assumes
    init: str = field(default="timm", metadata={"choices": VIT_INITS})


@dataclass
class ViT5Config(ModelConfig):
    """ViT-5; see :class:`models.vit5.ViT5`."""

    patch_size: int = 16
    embed_dim: int = 384
    depth: int = 12
    num_heads: int = 6
    mlp_ratio: float = 4.0
    registers: int = 4  # register tokens, a square number
    layer_scale: float = field(default=1e-4, metadata={"above": 0})  # initial value of LayerScale


@dataclass
class TimmConfig(ModelConfig):
    """Any timm model: ``model=timm model.name=resnet50 recipe=plain``."""

    kwargs: dict[str, Any] = field(default_factory=dict)  # further arguments: +model.kwargs.patch_size=8


FAMILIES: dict[str, type[ModelConfig]] = {
    "lipsformer_swin": LipsFormerSwinConfig,
    "lipsformer_cswin": LipsFormerCSwinConfig,
    "cswin": CSwinConfig,
    "vit": ViTConfig,
    "vit5": ViT5Config,
    "timm": TimmConfig,
}


def family_of(cfg: ModelConfig) -> str:
    """The name of a config's family."""
    return next(name for name, kind in FAMILIES.items() if type(cfg) is kind)
