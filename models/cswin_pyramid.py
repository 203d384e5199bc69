"""Base class of CSWin and LipsFormer-CSwin: the sizes of feature maps and stripes at each stage."""

import math
from collections.abc import Callable
from typing import Any

from timm.layers import to_2tuple
from torch import nn

from models.attention import CrossShapedAttention
from models.errors import ModelError
from models.layers import ConvEmbed
from models.pyramid import Pyramid, build_stages
from models.sizes import check_heads, check_positive, check_side, resized_width

PATCH = 4  # stride of the first stage in pixels


class CSwinPyramid(Pyramid):
    """A pyramid with cross-shaped attention. Subclasses supply the blocks, the norm and the layers between stages.

    Args:
        img_size: side of the image in pixels, or (height, width), a multiple of 4 * 2^(stages - 1).
        in_chans: image channels.
        num_classes: classes, or 0 for no classifier.
        embed_dim: channels of the first stage; each later stage doubles them.
        depths: blocks of each stage.
        num_heads: attention heads of each stage; an even number in all stages but the last.
        stripes: stripe width of each stage in tokens; the last stage attends over its whole feature map.
        global_pool: ``"avg"``, ``"max"``, ``"avgmax"``, or ``""`` to keep the feature map.
        drop_rate: dropout rate before the classifier.
        drop_path_rate: stochastic-depth rate of the last block; it grows linearly from 0 over the blocks.
        embed: builds the patch embedding from (in, out) channels.
        merge: builds the layer that halves a feature map, from (in, out) channels.
        block: builds a block from (channels, map size, heads, stripe width or None, drop path).
        norm: builds the norm after the last stage from its channels.
        init: initialises the layers of a module in place.
        **factory: device and dtype of the classifier.

    Raises:
        ModelError: if the sizes do not fit together.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int],
        in_chans: int,
        num_classes: int,
        embed_dim: int,
        depths: tuple[int, ...],
        num_heads: tuple[int, ...],
        stripes: tuple[int, ...],
        global_pool: str,
        drop_rate: float,
        drop_path_rate: float,
        embed: Callable[[int, int], ConvEmbed],
        merge: Callable[[int, int], nn.Module],
        block: Callable[[int, tuple[int, int], int, int | None, float], nn.Module],
        norm: Callable[[int], nn.Module],
        init: Callable[[nn.Module], None],
        **factory: Any,
    ):
        size = to_2tuple(img_size)
        check_positive(embed_dim=embed_dim, depths=depths, num_heads=num_heads, stripes=stripes)
        check_heads(embed_dim, depths, num_heads)
        check_side(size, PATCH * 2 ** (len(depths) - 1), f"{len(depths)} stages")
        widths = _stripe_widths(size, num_heads, stripes)

        def channels(stage: int) -> int:
            return embed_dim * 2**stage

        def make_block(stage: int, drop_path: float) -> nn.Module:
            return block(channels(stage), _map_size(size, stage), num_heads[stage], widths[stage], drop_path)

        super().__init__(
            img_size=size,
            patch_embed=embed(in_chans, embed_dim),
            stages=build_stages(
                depths, drop_path_rate, lambda stage: merge(channels(stage - 1), channels(stage)), make_block
            ),
            norm=norm(channels(len(depths) - 1)),
            in_chans=in_chans,
            embed_dim=embed_dim,
            reduction=PATCH,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            init=init,
            **factory,
        )
        self.num_heads = num_heads
        self.stripe_widths = stripes

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, stripes: tuple[int, ...] | None = None
    ) -> None:
        """Change the image size.

        Args:
            img_size: side in pixels, or (height, width); None keeps it.
            stripes: stripe width of each stage. None keeps each width that divides the new feature map, and scales
                the others with the map. A stage that attends over its whole map continues to do so.

        Raises:
            ModelError: if the sizes do not fit together; the model is then unchanged.
        """
        size = to_2tuple(img_size or self.img_size)
        stages = len(self.stripe_widths)
        check_side(size, PATCH * 2 ** (stages - 1), f"{stages} stages")
        stripes = self._resized_stripes(size) if stripes is None else tuple(stripes)
        check_positive(stripes=stripes)
        widths = _stripe_widths(size, self.num_heads, stripes)
        for stage, width in enumerate(_stripe_widths(self.img_size, self.num_heads, self.stripe_widths)):
            if (width is None) != (widths[stage] is None):
                raise ModelError(
                    f"stage {stage + 1} has weights {'for its whole map' if width is None else 'for stripes'}, and "
                    f"images of {size} pixels with model.stripes={stripes} need the other kind: choose other stripes "
                    "or build a new model"
                )
        # Not strict: a pruned model has fewer stages.
        for stage, (layers, width) in enumerate(zip(self.stages, widths, strict=False)):
            for module in layers.modules():
                if isinstance(module, CrossShapedAttention):
                    module.set_input_size(_map_size(size, stage), width)
        self.stripe_widths = stripes
        self._set_img_size(size, stripes=stripes)

    def _resized_stripes(self, size: tuple[int, int]) -> tuple[int, ...]:
        stripes = []
        for stage, width in enumerate(self.stripe_widths):
            before, after = _map_size(self.img_size, stage), _map_size(size, stage)
            stripes.append(after[0] if before == (width, width) else resized_width(width, before, after))
        return tuple(stripes)


def _map_size(img_size: tuple[int, int], stage: int) -> tuple[int, int]:
    """(height, width) of a stage's feature map in tokens."""
    stride = PATCH * 2**stage
    return img_size[0] // stride, img_size[1] // stride


def _unit(stripes: tuple[int, ...]) -> int:
    """Image sides must be multiples of this many pixels, so that stripes divide the map of every stage but the last."""
    last = len(stripes) - 1
    return math.lcm(PATCH * 2**last, *(PATCH * 2**stage * width for stage, width in enumerate(stripes[:last])))


def _stripe_widths(img_size: tuple[int, int], num_heads: tuple[int, ...], stripes: tuple[int, ...]) -> list[int | None]:
    """The stripe width of each stage; None means one branch over the whole feature map.

    It is None in the last stage, and where both sides of the map are as small as the stripe width.

    Raises:
        ModelError: if stripes do not divide a map, or heads cannot be halved.
    """
    if len(stripes) != len(num_heads):
        raise ModelError(
            f"model.depths has {len(num_heads)} stages and model.stripes has {len(stripes)}: give both the same length"
        )
    widths: list[int | None] = []
    for stage, width in enumerate(stripes):
        height_width = _map_size(img_size, stage)
        if stage == len(stripes) - 1 or height_width == (width, width):
            widths.append(None)
            continue
        if any(side % width for side in height_width):
            raise ModelError(
                f"stage {stage + 1}: stripes of width {width} do not divide its map of {height_width} tokens: "
                f"change model.stripes, or use image sizes that are multiples of {_unit(stripes)}"
            )
        if num_heads[stage] % 2:
            raise ModelError(
                f"stage {stage + 1}: {num_heads[stage]} heads cannot be split in two: make model.num_heads even"
            )
        widths.append(width)
    return widths
