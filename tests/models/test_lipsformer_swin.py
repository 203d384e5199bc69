"""LipsFormer-Swin's own layers against the formulas of the released code."""

import pytest
import timm
import torch
from torch import nn

from models import ModelError
from models.layers import CenterNorm
from models.lipsformer_parts import AttentionForm, Parts
from models.lipsformer_swin import LipsFormerSwinBlock, PatchMerging
from tests import literal


@torch.no_grad()
def test_a_block_equals_the_released_arithmetic():
    torch.manual_seed(0)
    similarity = AttentionForm("released", 10.0, 1e-6, 1.0).similarity(4)
    block = LipsFormerSwinBlock(8, 2, 3, 4, 0.3, 0.0, similarity, Parts()).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, 6, 3, 8, dtype=torch.float64)
    y = x + block.conv1.scale * literal.conv_branch(block.conv1.branch, x)
    y = y + block.conv2.scale * literal.conv_branch(block.conv2.branch, y)
    y = literal.center_norm(block.norm1, y + block.attn.scale * literal.window_attention(block.attn.branch, y))
    y = literal.center_norm(block.norm2, y + block.mlp.scale * literal.mlp(block.mlp.branch, y))
    torch.testing.assert_close(block(x), y, atol=1e-10, rtol=0)


def test_merging_concatenates_tokens_in_the_released_order():
    merge = PatchMerging(2, CenterNorm(8))
    x = torch.arange(2 * 4 * 2.0).view(1, 2, 4, 2)
    squares = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
    torch.testing.assert_close(merge(x), merge.reduction(merge.norm(squares)))


def test_windows_follow_the_image_size_and_bias_tables_follow_the_windows():
    sizes = {"img_size": 16, "patch_size": 2, "window_size": 4, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2)}
    model = timm.create_model("lipsformer_swin_tiny", num_classes=5, **sizes).eval()
    table = model.stages[0][0].attn.branch.relative_position_bias_table
    nn.init.constant_(table, 0.5)
    model.set_input_size(32)
    assert model.window_size == 4 and model.stages[0][0].attn.branch.relative_position_bias_table is table
    model.set_input_size(24)  # 4 does not divide the last map of 6, so the window scales from 4 of 8 to 3 of 6
    resized = model.stages[0][0].attn.branch.relative_position_bias_table
    assert model.window_size == 3 and resized.shape == (25, 1)
    torch.testing.assert_close(resized, torch.full_like(resized, 0.5))
    assert model(torch.randn(1, 3, 24, 24)).shape == (1, 5)
    model.set_input_size((24, 48), window_size=2)
    assert model(torch.randn(1, 3, 24, 48)).shape == (1, 5)
    for window in (0, 5):
        with pytest.raises(ModelError, match=r"window_size=0 must be 1|with patch 2, window 5 and 2 stages"):
            model.set_input_size(24, window)
    assert model(torch.randn(1, 3, 24, 48)).shape == (1, 5)
