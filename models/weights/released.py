"""Tensor names of the authors' LipsFormer, CSwin and ViT-5 models, mapped to our names.

``tests/released/`` lists all their names and shapes. Renaming changes no shape.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class _Form:
    """The tensor names of one architecture.

    Our merging layer is the first element of the stage after it. In such a stage our block indices are one higher.
    """

    block: str  # regex for the prefix of names in a block; groups: stage number, block index
    merging: str  # regex for the prefix of names in a merging layer; group: number of the stage before it
    first: int  # number of the first stage
    parts: Mapping[str, str | None]  # their prefix to ours, in a block or outside; None if our model has no such tensor

    def our_name(self, name: str) -> str | None:
        """Our name of a tensor; None if our model has no such tensor. Unknown names stay; loading reports them."""
        if block := re.match(self.block, name):
            stage, place = int(block[1]) - self.first, int(block[2])
            part = self._renamed(name[block.end() :])
            return part and f"stages.{stage}.{place + (stage > 0)}.{part}"
        if merging := re.match(self.merging, name):
            return f"stages.{int(merging[1]) - self.first + 1}.0.{name[merging.end() :]}"
        return self._renamed(name)

    def _renamed(self, name: str) -> str | None:
        for theirs, ours in self.parts.items():
            if name.startswith(f"{theirs}."):
                return ours and ours + name.removeprefix(theirs)
        return name


_SWIN_PLACES = {"block": r"layers\.(\d+)\.blocks\.(\d+)\.", "merging": r"layers\.(\d+)\.downsample\."}
_CSWIN_PLACES = {"block": r"stage(\d+)\.(\d+)\.", "merging": r"merge(\d+)\."}
# The four weighted residuals of every LipsFormer block. The 1x1 convolution (nin) follows dwconv_layers.0.
_RESIDUALS: dict[str, str | None] = {
    "dwconv_layers.0": "conv1.branch.depthwise",
    "nin": "conv1.branch.pointwise",
    "scale_layers.0": "conv1",
    "dwconv_layers.1": "conv2.branch.depthwise",
    "scale_layers.1": "conv2",
    "alpha1": "attn",
    "mlp": "mlp.branch",
    "alpha2": "mlp",
}
_CSWIN_STEM: dict[str, str | None] = {
    "stage1_conv_embed.0": "patch_embed.proj",
    "stage1_conv_embed.2": "patch_embed.norm",
}


def _cross_shaped(attention: str) -> dict[str, str | None]:
    parts = {"qkv": "qkv", "proj": "proj", "attns.0.get_v": "stripes.0.lepe", "attns.1.get_v": "stripes.1.lepe"}
    return {theirs: f"{attention}.{ours}" for theirs, ours in parts.items()}


_LIPSFORMER_SWIN = _Form(**_SWIN_PLACES, first=0, parts=_RESIDUALS | {"attn": "attn.branch"})
_CSWIN = _Form(**_CSWIN_PLACES, first=1, parts=_CSWIN_STEM | _cross_shaped("attn"))
# The authors' block has two norms and uses one of them. Names and shapes do not show which one. We take norm2, because
# the norm of a block comes after both residuals. The authors never published weights of this model.
_LIPSFORMER_CSWIN = _Form(
    **_CSWIN_PLACES,
    first=1,
    parts=_CSWIN_STEM | _cross_shaped("attn.branch") | _RESIDUALS | {"norm1": None, "norm2": "norm"},
)


def to_our_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights that have the authors' names. Other weights are returned unchanged."""
    if "blocks.0.attn.rope.freqs" in weights:
        return _vit5_names(weights)
    form = _form_of(weights)
    if form is None:
        return weights
    named = ((form.our_name(name), tensor) for name, tensor in weights.items())
    return {name: tensor for name, tensor in named if name is not None}


def _vit5_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of ViT-5. Its file also has the frequencies of the rotary positions, which follow from the sizes."""
    kept = {name: tensor for name, tensor in weights.items() if not re.search(r"\.rope(_reg)?\.freqs$", name)}
    return {re.sub(r"\.gamma_(\d)$", r".ls\1.gamma", name): tensor for name, tensor in kept.items()}


def _form_of(weights: dict[str, Tensor]) -> _Form | None:
    """Recognise the authors' weights by names that no model of ours or of timm has."""
    is_lipsformer = any(".dwconv_layers." in name for name in weights)
    if any(name.startswith("stage1_conv_embed.") for name in weights):
        return _LIPSFORMER_CSWIN if is_lipsformer else _CSWIN
    return _LIPSFORMER_SWIN if is_lipsformer else None
