"""LipsFormers computed with the operations of their authors' code, as the reference for scripts/bench/model_speed.py.

Parameters and results are the same as those of this project's models. The operations differ: convolutions run on
channels-first maps, windows and stripes are copied out of the map, attention runs as separate products and softmax, and
softmax, GELU and MLP are recomputed in the backward pass. It was written from a description of the released operations,
and is not meant for training.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm.layers import drop_path
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.attention import CrossShapedAttention, StripeAttention, WindowAttention
from models.layers import ConvBranch, WeightedResidual
from models.lipsformer_cswin import LipsFormerCSwin, LipsFormerCSwinBlock
from models.lipsformer_swin import LipsFormerSwin, LipsFormerSwinBlock, PatchMerging
from models.tokenwise import Mlp

Recompute = Callable[..., Tensor]


class AsReleased(nn.Module):
    """A LipsFormer of this project, computed with the released operations.

    Args:
        model: the model whose parameters are used.
        recompute: whether softmax, GELU and MLP are recomputed in the backward pass, as in the released code.
    """

    def __init__(self, model: LipsFormerSwin | LipsFormerCSwin, recompute: bool = True):
        super().__init__()
        self.model = model
        self.recompute = recompute

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(batch, in_chans, *img_size)`` to logits ``(batch, num_classes)``."""
        x = self.model.patch_embed(x)
        for stage in self.model.stages:
            for layer in stage:
                if isinstance(layer, LipsFormerSwinBlock):
                    x = layer.norm1(self.residual(layer.attn, self.window_attention, self.convolutions(layer, x)))
                    x = layer.norm2(self.residual(layer.mlp, self.mlp, x))
                elif isinstance(layer, LipsFormerCSwinBlock):
                    x = self.residual(layer.attn, self.cross_shaped_attention, self.convolutions(layer, x))
                    x = layer.norm(self.residual(layer.mlp, self.mlp, x))
                elif isinstance(layer, PatchMerging):
                    x = linear(layer.reduction, layer.norm(layer.side_by_side(x)))
                else:
                    x = layer(x)
        return self.model.forward_head(self.model.norm(x))

    def maybe_recomputed(self, function: Recompute, *inputs: Tensor) -> Tensor:
        return checkpoint(function, *inputs, use_reentrant=False) if self.recompute else function(*inputs)

    def residual(self, residual: WeightedResidual, compute: Callable, x: Tensor) -> Tensor:
        return x + drop_path(residual.scale * compute(residual.branch, x), residual.drop_path, residual.training)

    def convolutions(self, block: LipsFormerSwinBlock | LipsFormerCSwinBlock, x: Tensor) -> Tensor:
        """Apply both convolution branches, on channels-first maps."""
        maps = x.permute(0, 3, 1, 2).contiguous()
        for residual in (block.conv1, block.conv2):
            branch: ConvBranch = residual.branch  # type: ignore[assignment]
            depthwise = branch.depthwise
            y = F.conv2d(maps, depthwise.weight, depthwise.bias, padding=depthwise.padding, groups=depthwise.groups)
            y = self.maybe_recomputed(F.gelu, y)
            if branch.pointwise is not None:
                y = self.maybe_recomputed(F.gelu, branch.pointwise(y))
            maps = maps + drop_path(residual.scale.view(1, -1, 1, 1) * y, residual.drop_path, residual.training)
        return maps.permute(0, 2, 3, 1).contiguous()

    def mlp(self, mlp: Mlp, x: Tensor) -> Tensor:
        return self.maybe_recomputed(lambda t: linear(mlp.fc2, F.gelu(linear(mlp.fc1, t))), x)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None) -> Tensor:
        logits = (F.normalize(q, dim=-1) * scale) @ F.normalize(k, dim=-1).transpose(-2, -1)
        if bias is not None:
            logits = logits + bias
        return self.maybe_recomputed(lambda t: t.softmax(dim=-1), logits) @ v

    def window_attention(self, attention: WindowAttention, x: Tensor) -> Tensor:
        heads, dim = attention.num_heads, x.shape[-1]
        windows = cut(x, attention.window_size, attention.window_size)
        qkv = linear(attention.qkv, windows).view(*windows.shape[:2], 3, heads, dim // heads).permute(2, 0, 3, 1, 4)
        bias = attention.position_bias(torch.float32).unsqueeze(0)
        out = self.attend(*qkv.unbind(0), attention.similarity.scale, bias)
        out = linear(attention.proj, out.transpose(1, 2).reshape(windows.shape))
        return join(out, attention.window_size, attention.window_size, x.shape)

    def cross_shaped_attention(self, attention: CrossShapedAttention, x: Tensor) -> Tensor:
        qkv = linear(attention.qkv, x).chunk(3, dim=-1)
        count = len(attention.stripes)
        parts = zip(*(t.chunk(count, dim=-1) for t in qkv), strict=True)
        branches = [self.stripe(s, *part) for s, part in zip(attention.stripes, parts, strict=True)]  # type: ignore[arg-type]
        return linear(attention.proj, torch.cat(branches, dim=-1))

    def stripe(self, branch: StripeAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        (tall, wide), heads, dim = branch.stripe, branch.num_heads, q.shape[-1]
        stripes = [cut(t, tall, wide) for t in (q, k, v)]
        values = stripes[2].transpose(1, 2).reshape(-1, dim, tall, wide).contiguous()
        near = F.conv2d(values, branch.lepe.weight, branch.lepe.bias, padding=1, groups=dim)
        near = near.view(-1, heads, dim // heads, tall * wide).transpose(2, 3)
        by_head = (t.view(*t.shape[:2], heads, dim // heads).transpose(1, 2).contiguous() for t in stripes)
        out = (self.attend(*by_head, branch.similarity.scale, None) + near) * branch.similarity.gain
        return join(out.transpose(1, 2).reshape(stripes[0].shape), tall, wide, q.shape)


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Apply a linear layer with PyTorch's own operation."""
    return F.linear(x, layer.weight, layer.bias)


def cut(x: Tensor, tall: int, wide: int) -> Tensor:
    """Cut a map ``(batch, height, width, dim)`` into windows ``(windows, tall * wide, dim)``."""
    batch, height, width, dim = x.shape
    x = x.view(batch, height // tall, tall, width // wide, wide, dim)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, tall * wide, dim)


def join(windows: Tensor, tall: int, wide: int, shape: torch.Size) -> Tensor:
    """Invert :func:`cut`: join windows to a map of ``shape``."""
    batch, height, width, dim = shape
    x = windows.view(batch, height // tall, width // wide, tall, wide, dim)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(shape)
