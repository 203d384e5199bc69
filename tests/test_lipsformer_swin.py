"""LipsFormer-Swin's own parts, against the released arithmetic written out."""

import literal
import torch
from torch import nn

from models.attention import lipsformer_similarity
from models.lipsformer_swin import LipsFormerSwinBlock, PatchMerging


@torch.no_grad()
def test_block_equals_the_released_arithmetic():
    torch.manual_seed(0)
    similarity = lipsformer_similarity("released", 10.0, 1e-6, 1.0)
    block = LipsFormerSwinBlock(8, 2, 3, mlp_ratio=4, init_scale=0.3, drop_path=0.0, similarity=similarity).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, 6, 3, 8, dtype=torch.float64)
    y = x + block.conv1.scale * literal.conv_branch(block.conv1.branch, x)
    y = y + block.conv2.scale * literal.conv_branch(block.conv2.branch, y)
    y = literal.center_norm(block.norm1, y + block.attn.scale * literal.window_attention(block.attn.branch, y))
    y = literal.center_norm(block.norm2, y + block.mlp.scale * literal.mlp(block.mlp.branch, y))
    torch.testing.assert_close(block(x), y, atol=1e-10, rtol=0)


def test_merging_takes_squares_in_the_released_order():
    merge = PatchMerging(2)
    x = torch.arange(2 * 4 * 2.0).view(1, 2, 4, 2)
    squares = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
    torch.testing.assert_close(merge(x), merge.reduction(merge.norm(squares)))
