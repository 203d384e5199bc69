"""Layers of the pyramids: CenterNorm, the weighted residual and the convolution layers.

They work on feature maps in channels-last layout, ``(batch, height, width, channels)``. Linear layers then need no
transpose, and a convolution gets a channels-last view of the same memory.
Source: Qi et al., "LipsFormer: Introducing Lipschitz Continuity to Vision Transformers", ICLR 2023.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from models.depthwise import DepthwiseConv2d
from models.errors import ModelError
from models.kernels import plain, residual_center_norm, wants_triton
from models.sizes import check_image
from models.tokenwise import tokenwise

torch.fx.wrap("check_image")  # FX traces calls from this module as one node, so the graph keeps the check
torch.fx.wrap("tokenwise")


class CenterNorm(nn.Module):
    """Centre each token and scale it by a constant, not by its standard deviation (LipsFormer, section 4.1.1).

    ``y = weight * d / (d - 1) * (x - mean(x)) + bias`` over the last dimension of size ``d``. Unlike LayerNorm it
    is Lipschitz continuous, with constant ``max|weight| * d / (d - 1)``.

    Args:
        dim: channels ``d``, at least 2.
        **factory: device and dtype of the parameters.

    Raises:
        ModelError: if there is only one channel, because centring makes it zero.
    """

    def __init__(self, dim: int, **factory: Any):
        super().__init__()
        if dim < 2:
            raise ModelError(f"CenterNorm of {dim} channel is always zero: set model.embed_dim to 2 or more")
        self.dim = dim
        self.gain = dim / (dim - 1)
        self.weight = nn.Parameter(torch.empty(dim, **factory))
        self.bias = nn.Parameter(torch.empty(dim, **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., dim)`` to the same shape and dtype."""
        return plain.center_norm(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.dim}"


class WeightedResidual(nn.Module):
    """``x + drop * scale * branch(x)``: stochastic depth and a learned scale per channel (LipsFormer, section 4.1.3).

    A CenterNorm of the result can be part of it.

    Args:
        branch: maps ``(batch, ..., dim)`` to the same shape.
        dim: channels.
        init_scale: initial value of the scales: ``1 / number of blocks`` in LipsFormer-Swin, 0.2 in LipsFormer-CSwin.
        drop_path: probability that a sample skips the branch in training.
        **factory: device and dtype of the scales.
    """

    def __init__(self, branch: nn.Module, dim: int, init_scale: float, drop_path: float = 0.0, **factory: Any):
        super().__init__()
        self.init_scale = init_scale
        self.branch = branch
        self.scale = nn.Parameter(torch.empty(dim, **factory))
        self.reset_parameters()
        self.drop_path = drop_path
        self.kernels = "auto"

    def reset_parameters(self) -> None:
        nn.init.constant_(self.scale, self.init_scale)

    def forward(self, x: Tensor, norm_weight: Tensor | None = None, norm_bias: Tensor | None = None) -> Tensor:
        """``(batch, ..., dim)`` to the same shape and dtype.

        Args:
            x: feature map.
            norm_weight: weight of a CenterNorm of the result. In eager training on a GPU one kernel does both.
            norm_bias: bias of the CenterNorm.
        """
        branch = self.branch(x)
        if norm_weight is None or norm_bias is None:
            return plain.residual(x, branch, self.scale, self._drop(x))
        if self.training and wants_triton(self.kernels, x):
            return residual_center_norm(x, branch, self.scale, self._drop(x), norm_weight, norm_bias)
        return plain.residual_center_norm(x, branch, self.scale, self._drop(x), norm_weight, norm_bias)

    def _drop(self, x: Tensor) -> Tensor:
        """Draw a factor per image, ``(batch,)``: 0 where it skips the branch. The expected value is 1."""
        if not self.training or self.drop_path == 0:
            return torch.ones(x.shape[0], dtype=self.scale.dtype, device=x.device)
        kept = 1 - self.drop_path
        drop = torch.empty(x.shape[0], dtype=self.scale.dtype, device=x.device)
        return drop.bernoulli_(kept).div_(max(kept, 1e-9))


class PlainResidual(nn.Module):
    """``x + drop * branch(x)``: the usual residual, where a LipsFormer has a :class:`WeightedResidual`.

    Args:
        branch: maps ``(batch, ..., dim)`` to the same shape.
        dim: channels; not used, nor are ``init_scale`` and ``factory``.
        init_scale: see :class:`WeightedResidual`.
        drop_path: probability that a sample skips the branch in training.
        **factory: see :class:`WeightedResidual`.
    """

    def __init__(self, branch: nn.Module, dim: int, init_scale: float, drop_path: float = 0.0, **factory: Any):
        super().__init__()
        self.branch = branch
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, norm_weight: Tensor | None = None, norm_bias: Tensor | None = None) -> Tensor:
        """``(batch, ..., dim)`` to the same shape; see :class:`WeightedResidual`."""
        x = x + self.drop_path(self.branch(x))
        if norm_weight is None or norm_bias is None:
            return x
        return plain.center_norm(x, norm_weight, norm_bias)


class ConvBranch(nn.Module):
    """Depthwise convolution and GELU, then optionally a 1x1 convolution and GELU.

    Args:
        dim: channels.
        pointwise: whether the 1x1 convolution follows.
        kernel_size: side of the depthwise kernel, odd.
        **factory: device and dtype of the parameters.
    """

    def __init__(self, dim: int, pointwise: bool, kernel_size: int = 7, **factory: Any):
        super().__init__()
        self.depthwise = DepthwiseConv2d(dim, kernel_size, **factory)
        self.pointwise = nn.Conv2d(dim, dim, 1, **factory) if pointwise else None

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, height, width, dim)`` to the same shape."""
        x = F.gelu(self.depthwise(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        if self.pointwise is not None:
            # A 1x1 convolution is a linear layer on every token.
            x = F.gelu(tokenwise(x, self.pointwise.weight.flatten(1), self.pointwise.bias))
        return x


class ConvEmbed(nn.Module):
    """Patch embedding: a strided convolution and a norm.

    Args:
        in_chans: image channels.
        dim: channels of a token.
        norm: norm over the last dimension.
        kernel_size: side of the convolution's kernel in pixels.
        stride: pixels between tokens.
        padding: zero padding of the image in pixels.
        **factory: device and dtype of the parameters.

    Attributes:
        img_size: (height, width) in pixels that images must have, None for any size; ``Pyramid`` sets it.
    """

    def __init__(
        self,
        in_chans: int,
        dim: int,
        norm: nn.Module,
        kernel_size: int,
        stride: int,
        padding: int = 0,
        **factory: Any,
    ):
        super().__init__()
        self.img_size: tuple[int, int] | None = None
        self.proj = nn.Conv2d(in_chans, dim, kernel_size, stride, padding, **factory)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, in_chans, height, width)`` to ``(batch, height / stride, width / stride, dim)``.

        Raises:
            ModelError: if the image size is not ``img_size``.
        """
        if self.img_size is not None:
            x = check_image(x, self.img_size)
        # Contiguous, because the output has the images' memory layout, which residuals would pass on to all layers.
        return self.norm(self.proj(x).permute(0, 2, 3, 1).contiguous())


class ConvMerge(nn.Module):
    """Halve the feature map by a convolution of stride 2, then apply a norm.

    Args:
        dim: input channels.
        out_dim: output channels.
        norm: norm over the last dimension.
        kernel_size: side of the convolution's kernel in tokens.
        padding: zero padding of the map in tokens.
        **factory: device and dtype of the parameters.
    """

    def __init__(self, dim: int, out_dim: int, norm: nn.Module, kernel_size: int, padding: int = 0, **factory: Any):
        super().__init__()
        self.conv = nn.Conv2d(dim, out_dim, kernel_size, stride=2, padding=padding, **factory)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, height, width, dim)`` to ``(batch, height / 2, width / 2, out_dim)``."""
        return self.norm(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
