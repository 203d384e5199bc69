"""Convolutional stems of vision transformers: "scaled ReLU", and the stems that the paper compares it with.

Source: Wang et al., "Scaled ReLU Matters for Training Vision Transformers", AAAI 2022, section 3. Scaled ReLU is
BatchNorm followed by ReLU.
"""

from functools import partial
from typing import Any

from timm.layers import PatchEmbed
from torch import nn

from models.errors import ModelError

# Whether BatchNorm and ReLU follow each of the three convolutions.
_CONV_STEMS = {
    "conv": (False, False),
    "conv_bn": (True, False),
    "conv_relu": (False, True),
    "scaled_relu": (True, True),
}
STEMS = ("patchify", *_CONV_STEMS)


class ConvStem(PatchEmbed):
    """Three convolutions at half the resolution, then patches of half the size. The rest is timm's ``PatchEmbed``.

    Args:
        width: channels of the three convolutions.
        batch_norm: whether BatchNorm follows each of them.
        relu: whether ReLU follows each of them.
        **kwargs: arguments of timm's ``PatchEmbed``; ``patch_size`` must be even.

    Raises:
        ModelError: if the patch size is odd.
    """

    def __init__(self, width: int, batch_norm: bool, relu: bool, **kwargs: Any):
        super().__init__(**kwargs)
        if any(side % 2 for side in self.patch_size):
            near = max(self.patch_size) + 1
            raise ModelError(f"a convolutional stem halves the patch: model.patch_size must be even, such as {near}")
        project = self.proj
        factory: Any = {"device": kwargs.get("device"), "dtype": kwargs.get("dtype")}
        convolutions = (
            nn.Conv2d(project.in_channels, width, 7, stride=2, padding=3, bias=False, **factory),
            nn.Conv2d(width, width, 3, padding=1, bias=False, **factory),
            nn.Conv2d(width, width, 3, padding=1, bias=False, **factory),
        )
        layers: list[nn.Module] = []
        for convolution in convolutions:
            layers.append(convolution)
            if batch_norm:
                layers.append(nn.BatchNorm2d(width, **factory))
            if relu:
                layers.append(nn.ReLU())
        half = tuple(side // 2 for side in self.patch_size)
        has_bias = project.bias is not None
        layers.append(nn.Conv2d(width, project.out_channels, half, stride=half, bias=has_bias, **factory))
        self.proj = nn.Sequential(*layers)  # type: ignore[assignment]  # timm only calls it


def stem_layer(name: str, width: int) -> Any:
    """The ``embed_layer`` argument of timm's ``VisionTransformer`` for one of ``STEMS``.

    Args:
        name: one of ``STEMS``; ``patchify`` is timm's own patch embedding, one convolution.
        width: channels inside a convolutional stem.
    """
    if name == "patchify":
        return PatchEmbed
    batch_norm, relu = _CONV_STEMS[name]
    return partial(ConvStem, width, batch_norm, relu)
