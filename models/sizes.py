"""Sizes and choices that cannot be built, refused in one line that names those that can."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from models.errors import ModelError


def check_choice(option: str, value: str, choices: Iterable[str]) -> None:
    """Refuse a word that is none of ``choices``."""
    if value not in choices:
        known = ", ".join(choice or "''" for choice in choices)
        raise ModelError(f"model.{option}={value} is unknown: choose {known}")


def check_positive(**sizes: int | Sequence[int]) -> None:
    """Refuse options, or entries of them, that are less than 1, and options without an entry."""
    for option, size in sizes.items():
        entries = size if isinstance(size, Sequence) else [size]
        if not entries:
            raise ModelError(f"model.{option} is empty: give one number for each stage")
        if min(entries) < 1:
            raise ModelError(f"model.{option}={size} must be 1 or more")


def hidden_width(dim: int, mlp_ratio: float) -> int:
    """Hidden channels of an MLP on ``dim``; refuses an MLP without any."""
    if not 1 <= dim * mlp_ratio < math.inf:
        raise ModelError(f"model.mlp_ratio={mlp_ratio:g} of {dim} channels leaves the MLP none: set it to 4, say")
    return int(dim * mlp_ratio)


def check_heads(embed_dim: int, depths: tuple[int, ...], num_heads: tuple[int, ...]) -> None:
    """Refuse stages and heads that do not fit together."""
    if len(depths) != len(num_heads):
        raise ModelError(f"model.depths has {len(depths)} stages and model.num_heads {len(num_heads)}: give one each")
    for stage, heads in enumerate(num_heads):
        if (embed_dim * 2**stage) % heads:
            raise ModelError(f"stage {stage + 1}: {heads} heads do not divide {embed_dim * 2**stage} channels")


def check_side(img_size: tuple[int, ...], unit: int, because: str, advice: str = "") -> None:
    """Refuse image sizes that are no multiple of ``unit`` pixels, naming sizes near by that are."""
    for side in img_size:
        if side < 1 or side % unit:
            below = max(side, 0) // unit * unit
            near = " or ".join(str(size) for size in (below, below + unit) if size > 0)
            raise ModelError(
                f"image size {side} does not fit: with {because} it must be a multiple of {unit}, "
                f"such as {near}{advice}"
            )


def resized_width(width: int, before: tuple[int, int], after: tuple[int, int]) -> int:
    """How wide windows or stripes are on a map that was resized: as before where that divides the new map.

    Otherwise they change with the map. Where neither divides it, the width stays, for the model to refuse.

    Args:
        width: in tokens, on the old map.
        before: (height, width) of the old map in tokens.
        after: of the new one.
    """
    grown = min(width * new // old for old, new in zip(before, after, strict=True))
    fitting = (w for w in (width, grown) if w > 0 and all(side % w == 0 for side in after))
    return next(fitting, width)


@torch.fx.wrap  # one node of a traced graph, which keeps the check
def check_image(x: Tensor, img_size: tuple[int, int]) -> Tensor:
    """The images ``(batch, channels, height, width)``, if they are of ``img_size``.

    Raises:
        ModelError: if they are not.
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
