"""Pillow's operations on pixel values, for uint8 batches; each image has its own argument.

They run on CPU and GPU; the host does not wait for the GPU. Images are ``(n, 3, height, width)``, arguments ``(n,)``
float64. The arithmetic follows Pillow's, including its truncations. Sources: ImageOps, ImageEnhance, and ``Blend.c``,
``Filter.c``, ``BoxBlur.c`` and ``Convert.c`` of Pillow 12.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

GREY = (19595, 38470, 7471)  # weights of red, green and blue, in 65536ths


def column(values: Tensor, dtype: torch.dtype) -> Tensor:
    """One number for each image, as ``(n, 1, 1, 1)``."""
    return values.to(dtype).view(-1, 1, 1, 1)


def to_uint8(values: Tensor) -> Tensor:
    """Values in [0, 256), truncated. The step through int16 makes it three times as fast on a CPU."""
    return values.short().byte()


def choose(condition: Tensor, images: Tensor, others: Tensor) -> Tensor:
    """``torch.where`` for uint8, ten times as fast on a CPU."""
    mask = -condition.view(torch.uint8)  # 255 where true
    return others ^ ((images ^ others) & mask)


# --- value by value -------------------------------------------------------------------------------------------------


def invert(images: Tensor) -> Tensor:
    """``255 - v``."""
    return ~images


def solarize(images: Tensor, thresholds: Tensor) -> Tensor:
    """Invert all values from a threshold on; the threshold 256 inverts none."""
    return images ^ -(images >= column(thresholds, torch.int16)).view(torch.uint8)


def solarize_add(images: Tensor, added: Tensor) -> Tensor:
    """Add at most 128 to all values below 128, so the sum is at most 255."""
    return images + (images < 128) * column(added.clamp(max=255 - 127), torch.uint8)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the highest ``bits`` bits, 0 to 8."""
    return images & column(256 - 2 ** (8 - bits), torch.uint8)


def autocontrast(images: Tensor) -> Tensor:
    """Stretch the values of each channel to the full range 0 … 255."""
    flat = images.flatten(2)
    low, high = flat.amin(dim=2, keepdim=True).double(), flat.amax(dim=2, keepdim=True).double()
    scale = torch.full_like(low, 255) / (high - low)  # a plain 255 / tensor would be rounded twice
    values = torch.arange(256, device=images.device)
    stretched = (values * scale + -low * scale).clamp(0, 255)
    return _look_up(_places(images), torch.where(high > low, stretched, values.double()).byte(), images)


def equalize(images: Tensor) -> Tensor:
    """Equalize the histogram of each channel."""
    places = _places(images)
    counts = torch.zeros(images.shape[0] * 3 * 256, dtype=torch.int32, device=images.device)
    counts.index_add_(0, places, torch.ones_like(places))
    counts = counts.view(-1, 3, 256)
    last = counts.gather(2, images.flatten(2).amax(dim=2, keepdim=True).long())  # the count of the brightest value
    step = (counts.sum(dim=2, keepdim=True) - last) // 255
    below = counts.cumsum(dim=2) - counts
    spread = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    tables = torch.where(step > 0, spread, torch.arange(256, device=images.device)).byte()
    return _look_up(places, tables, images)


def _places(images: Tensor) -> Tensor:
    """The index of each pixel's value in flattened tables ``(n, 3, 256)``."""
    n, channels = images.shape[:2]
    first = torch.arange(0, n * channels * 256, 256, device=images.device, dtype=torch.int32)
    return (images.int() + first.view(n, channels, 1, 1)).flatten()


def _look_up(places: Tensor, tables: Tensor, images: Tensor) -> Tensor:
    return tables.flatten().index_select(0, places).view_as(images)


# --- blends with another image: the factor 1 keeps the image itself -------------------------------------------------


def brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Blend with black: 0 gives black."""
    return to_uint8((images * column(factors, torch.float32)).clamp_(max=255))


def contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Blend with the image's mean grey value, rounded: 0 gives plain grey."""
    mean = grey(images).flatten(1).sum(dim=1).double() / (images.shape[2] * images.shape[3])
    return _blend(column((mean + 0.5).floor(), torch.float32), images, factors)


def color(images: Tensor, factors: Tensor) -> Tensor:
    """Blend with the greyscale image: 0 gives greyscale."""
    return _blend(grey(images), images, factors)


def sharpness(images: Tensor, factors: Tensor) -> Tensor:
    """Blend with the image smoothed by ``ImageFilter.SMOOTH``: 0 gives the smooth image, 2 a sharp one."""
    # The kernel is 1 1 1, 1 5 1, 1 1 1, divided by 13. The border pixels are not changed.
    wide = images.short()
    rows = wide[:, :, :-2] + wide[:, :, 1:-1]
    rows += wide[:, :, 2:]
    sums = rows[..., :-2] + rows[..., 1:-1]
    sums += rows[..., 2:]
    sums.add_(wide[:, :, 1:-1, 1:-1], alpha=4)
    smooth = sums.float().mul_(1 / 13).round_()
    sharp = images.clone()
    sharp[:, :, 1:-1, 1:-1] = _blend(smooth, images[:, :, 1:-1, 1:-1], factors)
    return sharp


def grey(images: Tensor) -> Tensor:
    """Pillow's conversion to greyscale: ``(n, 1, height, width)`` int32."""
    red, green, blue = images.split(1, dim=1)
    total = red.int().mul_(GREY[0]).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2])
    return total.add_(0x8000).bitwise_right_shift_(16)


def _blend(first: Tensor, second: Tensor, factors: Tensor) -> Tensor:
    """``first + factor · (second - first)``, clipped to 0 … 255 and truncated to uint8."""
    difference = second.float() - first
    return to_uint8(difference.mul_(column(factors, torch.float32)).add_(first).clamp_(0, 255))


# --- blur -----------------------------------------------------------------------------------------------------------

PASSES = 3  # Pillow's Gaussian is three box blurs along rows, then three along columns, each rounded to uint8
HALF = 0.5 - 1e-4  # Pillow truncates its weights, so a value halfway between two integers is rounded down


def gaussian_blur(images: Tensor, radii: Tensor) -> Tensor:
    """``ImageFilter.GaussianBlur``, for radii of at most 2 pixels."""
    variance = radii.double() ** 2 / PASSES
    whole = (((12 * variance + 1).sqrt() - 1) / 2).floor()
    width = 2 * whole + 1
    share = width * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    inner = 1 / (2 * (whole + share) + 1)
    outer = (1 - width * inner) / 2
    # Weights of the pixels at distances 0, 1 and 2: at radius 2 the box reaches no further.
    weights = [inner, torch.where(whole > 0, inner, outer), torch.where(whole > 0, outer, 0)]
    blurred = images.float()
    for dim in (3, 2):
        for _ in range(PASSES):
            blurred = _box_blur(blurred, [column(weight, torch.float32) for weight in weights], dim)
    return to_uint8(blurred)


def _box_blur(images: Tensor, weights: list[Tensor], dim: int) -> Tensor:
    size = images.shape[dim]
    edges = F.pad(images, (2, 2, 0, 0) if dim == 3 else (0, 0, 2, 2), mode="replicate")
    at = [edges.narrow(dim, place, size) for place in range(5)]
    total = at[2] * weights[0] + (at[1] + at[3]) * weights[1] + (at[0] + at[4]) * weights[2]
    return total.add_(HALF).floor_()
