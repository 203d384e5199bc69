"""A small form of every family of models, for the tests that must hold for all of them."""

from dataclasses import dataclass, replace
from typing import Any

import timm
from torch import nn

import models  # noqa: F401  # registers them
from engine.options.recipe import recipe_file


@dataclass(frozen=True)
class Small:
    """A small model.

    Attributes:
        name: timm's name, which is also that of its file in ``conf/model/``.
        side: side of its images in pixels.
        options: the options that make it small.
    """

    name: str
    side: int
    options: dict[str, Any]

    def but(self, **changes: Any) -> "Small":
        """The same with other options."""
        return replace(self, options=self.options | changes)

    def create(self, **changes: Any) -> nn.Module:
        """The model, as timm's users build it."""
        size = {"img_size": self.side} if timm.get_pretrained_cfg(self.name).fixed_input_size else {}
        return timm.create_model(self.name, **(size | self.options | changes))

    def overrides(self) -> tuple[str, ...]:
        """The same model and images for ``train.py``."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in self.options.items()}
        options = (f"model.{key}={value}".replace(" ", "") for key, value in values.items())
        recipe = () if recipe_file(f"recipe/{self.name}") else ("recipe=plain",)
        return (f"model={self.name}", *recipe, f"data.crop={self.side}", f"data.resize={self.side}", *options)


SWIN = {"patch_size": 2, "embed_dim": 12, "depths": (1, 1), "num_heads": (1, 2)}
CSWIN = {"embed_dim": 16, "depths": (1, 1), "num_heads": (2, 4), "stripes": (2, 4)}
VIT = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}

# With the usual LayerScale of 1e-4, the class token hears of the image only after many steps.
VIT5 = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "layer_scale": 0.1}

# One for each family of models.config.FAMILIES, by its name there.
SMALL = {
    "lipsformer_swin": Small("lipsformer_swin_tiny", 28, SWIN),
    "lipsformer_cswin": Small("lipsformer_cswin_tiny", 32, CSWIN),
    "cswin": Small("cswin_tiny", 32, CSWIN),
    "vit": Small("deit_tiny", 32, VIT),
    "vit5": Small("vit5_small", 32, VIT5),
}
WITHOUT_PARTS = {"norm": "layernorm", "residual": "plain", "init": "xavier", "attention": "dot"}  # of a LipsFormer
# Options that change what a family computes.
VARIANTS = {
    "lipsformer_swin, certified": SMALL["lipsformer_swin"].but(attention="certified", epsilon=0.01),
    "lipsformer_cswin, certified": SMALL["lipsformer_cswin"].but(attention="certified"),
    "lipsformer_swin, its parts taken away": SMALL["lipsformer_swin"].but(**WITHOUT_PARTS),
    "vit, Post-LN": SMALL["vit"].but(norm_position="post"),
    "vit, convolutional stem": Small("deit_small_convstem", 32, VIT | {"stem_width": 8}),
    "vit, DyT": SMALL["vit"].but(norm="dyt"),
    "vit, RMSNorm": SMALL["vit"].but(norm="rmsnorm"),
    "vit, QK-norm": SMALL["vit"].but(stabilizer="qk_norm"),
    "vit, fixed positions": Small("vit_small_sincos", 32, VIT),
}
FORMS = SMALL | VARIANTS
