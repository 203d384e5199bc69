"""Pillow's operations on pixel values, for uint8 batches; each image has its own operation and argument.

They run on CPU and GPU; the host does not wait for the GPU. Images are ``(n, 3, height, width)``. The arithmetic
follows Pillow's, including its truncations. Sources: ImageOps, ImageEnhance, and ``Blend.c``, ``Filter.c``,
``BoxBlur.c`` and ``Convert.c`` of Pillow 12.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from data.augment.layer import Layer
from data.augment.levels import Floats, Op
from data.transfer import send


def truncate(values: Tensor) -> Tensor:
    """Values in [0, 256) without their fractions, int16: copies to uint8 are three times as fast from it on a CPU."""
    return values.short()


# --- value by value: a table of 256 values for each channel ---------------------------------------------------------

VALUES = np.arange(256)
# From arguments (n, 1, 1) to tables (n, 1, 256); their entries are truncated.
TABLES: dict[Op, Callable[[Floats], NDArray]] = {
    Op.INVERT: lambda _: 255 - VALUES,
    Op.POSTERIZE: lambda bits: VALUES & (256 - 2 ** (8 - bits)).astype(int),
    Op.SOLARIZE: lambda first: np.where(VALUES < first, VALUES, 255 - VALUES),
    Op.SOLARIZE_ADD: lambda added: np.where(VALUES < 128, VALUES + added, VALUES),
    Op.BRIGHTNESS: lambda factor: np.minimum(VALUES.astype(np.float32) * factor.astype(np.float32), 255),
}
FULL = torch.tensor(255.0, dtype=torch.float64)


def look_up(images: Tensor, layer: Layer) -> Tensor:
    """Replace each value by another one; the operations are ``TABLES``, autocontrast and equalize."""
    host = np.tile(VALUES.astype(np.uint8), (len(images), 3, 1))
    for op, table in TABLES.items():
        for rows in layer.rows(op):
            host[rows] = table(layer.args[rows, None, None])
    tables = send(images.device, host)
    values = images.flatten(2)
    places = values.long()
    for rows in layer.rows(Op.AUTOCONTRAST):
        tables[rows] = _autocontrast(values[rows], tables[rows])
    for rows in layer.rows(Op.EQUALIZE):
        tables[rows] = _equalize(places[rows], tables[rows])
    return tables.gather(2, places).view_as(images)


def _autocontrast(values: Tensor, same: Tensor) -> Tensor:
    """Stretch the values of each channel to the full range 0 … 255."""
    low, high = values.amin(dim=2, keepdim=True), values.amax(dim=2, keepdim=True)
    scale = FULL / (high - low)  # a plain 255 / tensor would be rounded twice
    return torch.where(high > low, (same * scale - low * scale).clamp(0, 255), same)


def _equalize(values: Tensor, same: Tensor) -> Tensor:
    """Equalize the histogram of each channel."""
    counts = torch.zeros(same.shape, dtype=torch.int64, device=same.device)
    counts.scatter_add_(2, values, values.new_ones(1).expand_as(values))
    upto = counts.cumsum(dim=2)
    # Pillow counts the pixels that are darker than the brightest one. From its value on, upto is the number of all
    # pixels, which % makes 0. So the largest number that is left is this count.
    step = (upto % values.shape[2]).amax(dim=2, keepdim=True) // 255
    spread = (step // 2 + upto - counts) // step.clamp(min=1)
    return torch.where(step > 0, spread.clamp(max=255), same)


# --- blends with another image: the factor 1 keeps the image itself -------------------------------------------------


def blend(images: Tensor, layer: Layer) -> Tensor:
    """Blend with greyscale (color), its mean (contrast) or a smooth image (sharpness): 0 gives only these."""
    wide = images.float()
    first = torch.empty_like(wide)
    for rows in layer.rows(Op.COLOR, Op.CONTRAST):
        first[rows] = _grey(wide[rows])
    for rows in layer.rows(Op.CONTRAST):
        first[rows] = _mean(first[rows])
    for rows in layer.rows(Op.SHARPNESS):
        first[rows] = _smooth(wide[rows])
    return truncate((wide - first).mul_(layer.column(images.device)).add_(first).clamp_(0, 255))


def _grey(wide: Tensor) -> Tensor:
    """Pillow's conversion to greyscale: ``(n, 1, height, width)``. Float32 has all digits of these sums."""
    red, green, blue = wide.split(1, dim=1)
    total = (red * (19595 / 65536)).add_(green, alpha=38470 / 65536).add_(blue, alpha=7471 / 65536)
    return total.add_(0.5).floor_()


def _mean(wide: Tensor) -> Tensor:
    """The mean of all values, rounded: ``(n, 1, 1, 1)``."""
    total = wide.sum(dim=(1, 2, 3), keepdim=True, dtype=torch.float64)
    return (total / wide[0].numel()).add_(0.5).floor_()


def _smooth(wide: Tensor) -> Tensor:
    """``ImageFilter.SMOOTH``: the kernel is 1 1 1, 1 5 1, 1 1 1, divided by 13. The border pixels are not changed."""
    rows = wide[:, :, :-2] + wide[:, :, 1:-1]
    rows += wide[:, :, 2:]
    sums = rows[..., :-2] + rows[..., 1:-1]
    sums += rows[..., 2:]
    sums.add_(wide[:, :, 1:-1, 1:-1], alpha=4)
    smooth = wide.clone()
    torch.round(sums.mul_(1 / 13), out=smooth[:, :, 1:-1, 1:-1])
    return smooth


# --- blur -----------------------------------------------------------------------------------------------------------

PASSES = 3  # Pillow's Gaussian is three box blurs along rows, then three along columns, each rounded to uint8
HALF = 0.5 - 1e-4  # Pillow truncates its weights, so a value halfway between two integers is rounded down


def gaussian_blur(images: Tensor, layer: Layer) -> Tensor:
    """``ImageFilter.GaussianBlur``, for radii of at most 2 pixels."""
    variance = layer.args**2 / PASSES
    whole = np.floor((np.sqrt(12 * variance + 1) - 1) / 2)
    width = 2 * whole + 1
    share = width * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    inner = 1 / (2 * (whole + share) + 1)
    outer = (1 - width * inner) / 2
    # Weights of the pixels at distances 0, 1 and 2: at radius 2 the box reaches no further.
    host = np.stack([inner, np.where(whole > 0, inner, outer), np.where(whole > 0, outer, 0)])
    weights = send(images.device, host.astype(np.float32).reshape(3, -1, 1, 1, 1))
    blurred = images.float()
    for dim in (3, 2):
        for _ in range(PASSES):
            blurred = _box_blur(blurred, weights, dim)
    return truncate(blurred)


def _box_blur(images: Tensor, weights: Tensor, dim: int) -> Tensor:
    size = images.shape[dim]
    edges = F.pad(images, (2, 2, 0, 0) if dim == 3 else (0, 0, 2, 2), mode="replicate")
    at = [edges.narrow(dim, place, size) for place in range(5)]
    total = at[2] * weights[0] + (at[1] + at[3]) * weights[1] + (at[0] + at[4]) * weights[2]
    return total.add_(HALF).floor_()
