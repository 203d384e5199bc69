"""The papers' formulas, computed one token at a time: slow, but independent of the models' code. For float64."""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.attention import CrossShapedAttention, StripeAttention, WindowAttention
from models.layers import CenterNorm, ConvBranch
from models.similarity import Similarity


def logit(q: Tensor, k: Tensor, similarity: Similarity) -> Tensor:
    """The logit of one query and one key."""
    if similarity.normalise == "none":
        return similarity.scale * (q @ k)
    if similarity.normalise == "qk":
        return similarity.scale * (q @ k) / (q.norm() * k.norm())
    epsilon = similarity.epsilon
    return similarity.scale * (q @ k) / ((q @ q + epsilon).sqrt() * (k @ k + epsilon).sqrt())


def value(v: Tensor, similarity: Similarity) -> Tensor:
    """The value of a token, normalised if the similarity normalises values."""
    return v / (v @ v + similarity.epsilon).sqrt() if similarity.normalise == "qkv" else v


def attend(q: Tensor, k: Tensor, v: Tensor, similarity: Similarity, bias: Tensor | None = None) -> Tensor:
    """Attention of one head, without the gain. q, k, v and the result are ``(tokens, head_dim)``."""
    rows = []
    for i in range(len(q)):
        logits = torch.stack([logit(q[i], k[j], similarity) for j in range(len(k))])
        shares = (logits if bias is None else logits + bias[i]).softmax(0)
        rows.append(sum(shares[j] * value(v[j], similarity) for j in range(len(v))))
    return torch.stack(rows)


def window_attention(attention: WindowAttention, x: Tensor) -> Tensor:
    """Window attention, one window and one head at a time."""
    batch, height, width, dim = x.shape
    side, heads = attention.window_size, attention.num_heads
    table = attention.relative_position_bias_table.view(2 * side - 1, 2 * side - 1, heads)
    places = [(r, c) for r in range(side) for c in range(side)]
    mixed = torch.zeros_like(x)
    for b in range(batch):
        for top in range(0, height, side):
            for left in range(0, width, side):
                tokens = torch.stack([x[b, top + r, left + c] for r, c in places])
                q, k, v = attention.qkv(tokens).view(len(places), 3, heads, dim // heads).unbind(1)
                for h in range(heads):
                    bias = torch.stack(
                        [
                            torch.stack([table[ri - rj + side - 1, ci - cj + side - 1, h] for rj, cj in places])
                            for ri, ci in places
                        ]
                    )
                    out = attend(q[:, h], k[:, h], v[:, h], attention.similarity, bias)
                    for i, (r, c) in enumerate(places):
                        mixed[b, top + r, left + c, h * dim // heads : (h + 1) * dim // heads] = out[i]
    return attention.proj(mixed * attention.similarity.gain)


def stripe_attention(branch: StripeAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One branch of cross-shaped attention, one stripe and one head at a time, on maps ``(height, width, dim)``."""
    height, width, dim = q.shape
    tall, wide = branch.stripe
    kernel, offset = branch.lepe.weight[:, 0], branch.lepe.bias
    out = torch.zeros_like(q)
    for top in range(0, height, tall):
        for left in range(0, width, wide):
            places = [(r, c) for r in range(top, top + tall) for c in range(left, left + wide)]
            tokens = [torch.stack([t[p] for p in places]) for t in (q, k, v)]
            for channels in torch.arange(dim).chunk(branch.num_heads):
                mixed = attend(*(t[:, channels] for t in tokens), branch.similarity)
                for i, (r, c) in enumerate(places):
                    near = offset[channels].clone()
                    for dr in (-1, 0, 1):
                        for dc in (-1, 0, 1):
                            if (r + dr, c + dc) in places:
                                neighbour = value(v[r + dr, c + dc][channels], branch.similarity)
                                near = near + kernel[channels, dr + 1, dc + 1] * neighbour
                    out[r, c, channels] = (mixed[i] + near) * branch.similarity.gain
    return out


def cross_shaped_attention(attention: CrossShapedAttention, x: Tensor) -> Tensor:
    """Cross-shaped attention, one image at a time."""
    dim, count = x.shape[-1], len(attention.stripes)
    images = []
    for image in x:
        q, k, v = attention.qkv(image).split(dim, -1)
        parts = zip(*(t.split(dim // count, -1) for t in (q, k, v)), strict=True)
        branches = [stripe_attention(s, *part) for s, part in zip(attention.stripes, parts, strict=True)]
        images.append(attention.proj(torch.cat(branches, -1)))
    return torch.stack(images)


def conv_branch(branch: ConvBranch, x: Tensor) -> Tensor:
    """A convolution branch in channels-first layout, one position at a time."""
    maps = x.permute(0, 3, 1, 2)
    kernel = branch.depthwise.weight[:, 0]
    side = kernel.shape[-1]
    padded = F.pad(maps, (side // 2,) * 4)
    out = torch.zeros_like(maps)
    for r in range(maps.shape[2]):
        for c in range(maps.shape[3]):
            out[:, :, r, c] = (padded[:, :, r : r + side, c : c + side] * kernel).sum((2, 3)) + branch.depthwise.bias
    out = F.gelu(out)
    if branch.pointwise is not None:
        weight = branch.pointwise.weight[:, :, 0, 0]
        out = F.gelu(torch.einsum("oi,bihw->bohw", weight, out) + branch.pointwise.bias.view(-1, 1, 1))
    return out.permute(0, 2, 3, 1)


def center_norm(norm: CenterNorm, x: Tensor) -> Tensor:
    """The formula of CenterNorm."""
    dim = x.shape[-1]
    return norm.weight * dim / (dim - 1) * (x - x.sum(-1, keepdim=True) / dim) + norm.bias


def layer_norm(norm: torch.nn.LayerNorm, x: Tensor) -> Tensor:
    """The formula of LayerNorm."""
    centred = x - x.mean(-1, keepdim=True)
    return norm.weight * centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt() + norm.bias


def mlp(layer, x: Tensor) -> Tensor:
    """Two linear layers with an exact GELU between them."""
    hidden = x @ layer.fc1.weight.T + layer.fc1.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    return hidden @ layer.fc2.weight.T + layer.fc2.bias
