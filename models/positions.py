"""Fixed position embeddings of vision transformers (``model.pos_embed``)."""

import torch
from torch import Tensor

POSITIONS = ("learn", "sincos2d")


def sincos2d(rows: int, columns: int, dim: int, base: float = 10_000.0) -> Tensor:
    """Sines and cosines of the column, then of the row, of each patch.

    A quarter of the channels has the frequencies ``base ** (-i / (dim / 4 - 1))``, from 1 down to 1 / ``base``.
    Source: Chen et al., "An Empirical Study of Training Self-Supervised Vision Transformers" (MoCo v3), ICCV 2021, and
    its code.

    Args:
        rows: patches in a column of the image.
        columns: patches in a row.
        dim: channels, divisible by 4 and at least 8.
        base: ratio of the highest to the lowest frequency.

    Returns:
        ``(1, rows * columns, dim)``, patches row by row, in float32.
    """
    frequencies = base ** -torch.linspace(0, 1, dim // 4, dtype=torch.float64)
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    x, y = (place.reshape(-1, 1) * frequencies for place in (column, row))
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1).float()[None]
