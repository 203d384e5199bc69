"""Sizes that cannot be built, refused in one line that names sizes that can."""

import math
from collections.abc import Sequence

from models.errors import ModelError


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


def check_side(img_size: tuple[int, int], unit: int, because: str, advice: str = "") -> None:
    """Refuse image sizes that are no multiple of ``unit`` pixels, naming sizes near by that are."""
    for side in img_size:
        if side < 1 or side % unit:
            below = max(side, 0) // unit * unit
            near = " or ".join(str(size) for size in (below, below + unit) if size > 0)
            raise ModelError(
                f"image size {side} does not fit: with {because} it must be a multiple of {unit}, "
                f"such as {near}{advice}"
            )
