"""Names of tensors in the files that the authors of LipsFormer and CSwin published, and ours for them.

Their names and shapes, tensor by tensor, are in ``tests/released/``. Shapes are the same under both names.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class _Form:
    """How the files of one architecture name their tensors.

    Our merging is the first element of the stage it leads to, so that blocks of a stage with one come one later.
    """

    block: str  # how the names in a block begin; groups: number of the stage, place in the stage
    merging: str  # how the names in a merging begin; group: number of the stage before it
    first: int  # number of the first stage
    parts: Mapping[str, str | None]  # beginnings of names, in a block or outside; None: unused, left out

    def our_name(self, name: str) -> str | None:
        """Our name of a tensor; None where our model has no such thing. An unknown name stays, to be complained of."""
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
# The four weighted residuals of every LipsFormer block. Their first depthwise convolution is the one with the 1x1.
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
# A block has two norms and uses one. Names and shapes do not tell which: we take the second, which is where the one
# norm of a block stands, after both residuals. No file of this model was ever published.
_LIPSFORMER_CSWIN = _Form(
    **_CSWIN_PLACES,
    first=1,
    parts=_CSWIN_STEM | _cross_shaped("attn.branch") | _RESIDUALS | {"norm1": None, "norm2": "norm"},
)


def to_our_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under our names where they have the authors'; any others as they are."""
    form = _form_of(weights)
    if form is None:
        return weights
    named = ((form.our_name(name), tensor) for name, tensor in weights.items())
    return {name: tensor for name, tensor in named if name is not None}


def _form_of(weights: dict[str, Tensor]) -> _Form | None:
    """The authors' files are known by names that no model of ours or of timm has."""
    is_lipsformer = any(".dwconv_layers." in name for name in weights)
    if any(name.startswith("stage1_conv_embed.") for name in weights):
        return _LIPSFORMER_CSWIN if is_lipsformer else _CSWIN
    return _LIPSFORMER_SWIN if is_lipsformer else None
