"""Checks of sizes and choices. Each error is one line that names values that work."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from models.errors import ModelError


def check_choice(option: str, value: str, choices: Iterable[str]) -> None:
    """Refuse a value that is not in ``choices``."""
    if value not in choices:
        known = ", ".join(choice or "''" for choice in choices)
        raise ModelError(f"model.{option}={value} is unknown: choose {known}")


def check_positive(**sizes: int | Sequence[int]) -> None:
    """Refuse numbers less than 1, alone or in a list, and empty lists."""
    for option, size in sizes.items():
        entries = size if isinstance(size, Sequence) else [size]
        if not entries:
            raise ModelError(f"model.{option} is empty: give one number for each stage")
        if min(entries) < 1:
            raise ModelError(f"model.{option}={size} must be 1 or more")


def hidden_width(dim: int, mlp_ratio: float) -> int:
    """Hidden channels of an MLP on ``dim`` channels. Refuses ratios that give less than one or no finite number."""
    if not 1 <= dim * mlp_ratio < math.inf:
        raise ModelError(
            f"model.mlp_ratio={mlp_ratio:g} gives no valid hidden width for {dim} channels: set a number such as 4"
        )
    return int(dim * mlp_ratio)


def check_heads(embed_dim: int, depths: tuple[int, ...], num_heads: tuple[int, ...]) -> None:
    """Refuse lists of different lengths, and numbers of heads that do not divide the channels."""
    if len(depths) != len(num_heads):
        raise ModelError(
            f"model.depths has {len(depths)} stages and model.num_heads has {len(num_heads)}: give both the same length"
        )
    for stage, heads in enumerate(num_heads):
        if (embed_dim * 2**stage) % heads:
            raise ModelError(
                f"stage {stage + 1}: {heads} heads do not divide {embed_dim * 2**stage} channels: "
                f"change model.num_heads or model.embed_dim"
            )


def check_side(img_size: tuple[int, ...], unit: int, because: str, advice: str = "") -> None:
    """Refuse image sizes that are not multiples of ``unit`` pixels. The message names the nearest multiples."""
    for side in img_size:
        if side < 1 or side % unit:
            below = max(side, 0) // unit * unit
            near = " or ".join(str(size) for size in (below, below + unit) if size > 0)
            raise ModelError(
                f"image size {side} does not fit: with {because} it must be a multiple of {unit}, "
                f"such as {near}{advice}"
            )


def resized_width(width: int, before: tuple[int, int], after: tuple[int, int]) -> int:
    """The width of windows or stripes after the feature map was resized.

    The width stays the same if it divides the new map. Otherwise it is scaled with the map. If neither divides the
    map, the old width is returned, and the model refuses it.

    Args:
        width: width on the old map, in tokens.
        before: (height, width) of the old map in tokens.
        after: (height, width) of the new map in tokens.
    """
    grown = min(width * new // old for old, new in zip(before, after, strict=True))
    fitting = (w for w in (width, grown) if w > 0 and all(side % w == 0 for side in after))
    return next(fitting, width)


def check_image(x: Tensor, img_size: tuple[int, int]) -> Tensor:
    """Return the images ``(batch, channels, height, width)`` if their size is ``img_size``.

    Raises:
        ModelError: if their size is different.
    """
    height, width = x.shape[-2], x.shape[-1]
    if torch.jit.is_scripting():
        assert height == img_size[0] and width == img_size[1], f"the model takes images of {img_size} pixels"
    else:
        if (height, width) != img_size:
            raise ModelError(
                f"the model takes images of {img_size} pixels and got {(height, width)}: "
                f"set model.img_size (it follows data.crop) or resize the images"
            )
    return x
