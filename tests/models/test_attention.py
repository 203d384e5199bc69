"""Window and cross-shaped attention against their formulas."""

import pytest
import torch
from torch import nn

from models.attention import CrossShapedAttention, WindowAttention
from models.lipsformer_parts import AttentionForm
from models.similarity import Similarity
from tests import literal

SIMILARITIES = {
    "dot": Similarity(0.7),
    "released": AttentionForm("released", 10.0, 1e-6, 1.0).similarity(4, gain=0.5),
    "certified": AttentionForm("certified", 12.0, 0.1, 1.5).similarity(4),
}


def randomised(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.double()


@pytest.mark.parametrize("similarity", SIMILARITIES.values(), ids=SIMILARITIES)
@torch.no_grad()
def test_window_attention_equals_its_formula(similarity):
    torch.manual_seed(0)
    attention = randomised(WindowAttention(8, 3, 2, similarity))
    x = torch.randn(2, 6, 3, 8, dtype=torch.float64)
    torch.testing.assert_close(attention(x), literal.window_attention(attention, x), atol=1e-10, rtol=0)


@pytest.mark.parametrize("similarity", SIMILARITIES.values(), ids=SIMILARITIES)
@pytest.mark.parametrize(("size", "width"), [((4, 6), 2), ((3, 3), 1), ((3, 4), None)])
@torch.no_grad()
def test_cross_shaped_attention_equals_its_formula(similarity, size, width):
    torch.manual_seed(0)
    attention = randomised(CrossShapedAttention(8, size, 4, width, similarity))
    x = torch.randn(2, *size, 8, dtype=torch.float64)
    torch.testing.assert_close(attention(x), literal.cross_shaped_attention(attention, x), atol=1e-10, rtol=0)


def test_vertical_stripes_come_first_and_horizontal_stripes_second():
    attention = CrossShapedAttention(8, (4, 6), 2, 1, Similarity(1.0))
    assert [stripe.stripe for stripe in attention.stripes] == [(4, 1), (1, 6)]


@pytest.mark.parametrize("move", [nn.Module.cpu, nn.Module.share_memory, lambda layer: layer.to_empty(device="cpu")])
def test_the_bias_index_is_correct_after_a_move_in_inference_mode(move):
    attention = WindowAttention(8, 3, 2, Similarity(1.0))
    index = attention.relative_position_index.clone()
    with torch.inference_mode():
        move(attention)
    assert torch.equal(attention.relative_position_index, index)
    assert attention.relative_position_index.is_shared() == attention.relative_position_bias_table.is_shared()
    for parameter in attention.parameters():
        parameter.data = torch.ones(parameter.shape)
    attention(torch.randn(1, 3, 3, 8)).sum().backward()


@pytest.mark.parametrize("trained", [True, False])
def test_a_bias_table_is_trained_for_another_window_size_only_if_it_was_before(trained):
    attention = WindowAttention(8, 3, 2, Similarity(1.0))
    attention.relative_position_bias_table.requires_grad_(trained)
    attention.set_window_size(4)
    table = attention.relative_position_bias_table
    assert table.shape == (49, 2) and table.requires_grad == trained
