"""Attention of torch's own layers is measured."""

import math

import pytest
import torch
from torch import Tensor, nn

from stability import attention_report, entropy
from stability.layers import query_keys
from stability.multihead import attended


@pytest.mark.parametrize("each", [False, True], ids=["one mask", "a mask for each image and head"])
@pytest.mark.parametrize("kdim", [None, 6], ids=["one matrix", "separate matrices"])
def test_torchs_own_attention_is_measured(kdim, each):
    """The matrices that ``need_weights`` returns, with both kinds of masks."""
    layer = nn.MultiheadAttention(8, 2, kdim=kdim, vdim=kdim, batch_first=True).eval()
    nn.init.normal_(layer.in_proj_bias)
    x, y = torch.randn(3, 5, 8), torch.randn(3, 5, kdim or 8)
    pairs = torch.ones(5, 5).triu(1).bool()
    if each:
        pairs = pairs | (torch.rand(3 * 2, 5, 5) < 0.5) & (torch.arange(5) > 0)  # the first key is for all queries
    masks = {"attn_mask": pairs, "key_padding_mask": torch.tensor([[False] * 4 + [True]] * 3)}

    class Asked(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x, y, y, need_weights=False, **masks)[0]

    (report,) = attention_report(Asked(), x).values()
    weights = layer(x, y, y, average_attn_weights=False, **masks)[1]
    expected = (entropy(weights) / math.log(5)).mean(dim=(0, 2))
    torch.testing.assert_close(report.entropy, expected)


def test_queries_and_keys_have_their_own_weights_and_biases():
    weight, bias, x, y = torch.randn(24, 8), torch.randn(24), torch.randn(5, 3, 8), torch.randn(7, 3, 8)
    options = {"in_proj_weight": weight, "in_proj_bias": bias, "num_heads": 2, "embed_dim_to_check": 8}
    rest = dict.fromkeys(("bias_k", "bias_v", "add_zero_attn", "dropout_p", "out_proj_weight", "out_proj_bias"))
    query, key, mask = attended((), {"query": x, "key": y, "value": y} | options | rest)
    for found, of, rows in ((query, x, slice(8)), (key, y, slice(8, 16))):
        by_head = (of @ weight[rows].T + bias[rows]).view(len(of), 3, 2, 4)
        torch.testing.assert_close(found, by_head.permute(1, 2, 0, 3))
    assert mask is None


@pytest.mark.parametrize("norm_first", [True, False])
def test_torchs_encoder_layer_is_measured_though_it_has_a_fast_path(norm_first):
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=norm_first)
    mask = nn.Transformer.generate_square_subsequent_mask(5)

    class Asked(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x, src_mask=mask, is_causal=True)

    (report,) = attention_report(Asked(), torch.randn(3, 5, 8)).items()
    assert report[0] == "layer.self_attn" and (report[1].entropy < 0.9).all(), "the first token sees only itself"


def test_its_queries_and_keys_are_found():
    layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16)
    (found,) = query_keys(layer).values()
    assert list(query_keys(layer)) == ["self_attn"] and found.heads == 2
    assert torch.equal(torch.cat([found.query, found.key]), layer.self_attn.in_proj_weight[:16])
    assert query_keys(nn.MultiheadAttention(8, 2, kdim=4, vdim=4)) == {}  # three weights of other shapes
