"""The parts of a LipsFormer: each can be taken away, and the usual part is then in its place."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.errors import ModelError
from models.lipschitz import lipschitz_bound
from models.lipsformer_parts import AttentionForm, Parts
from models.lipsformer_swin import LipsFormerSwinBlock
from models.spectral import largest_singular_value
from tests import literal
from tests.families import SMALL

LIPSFORMERS = ("lipsformer_swin", "lipsformer_cswin")


def test_unknown_forms_and_infinite_bounds_are_refused():
    with pytest.raises(ModelError, match=r"model.attention=certifed is unknown: choose released, certified, dot"):
        AttentionForm("certifed", 10.0, 1e-6, 1.0)
    for epsilon, nu, option in (
        (0.0, 1.0, "epsilon=0"),
        (math.nan, 1.0, "epsilon=nan"),
        (math.inf, 1.0, "epsilon=inf"),
        (1.0, math.nan, "nu=nan"),
    ):
        with pytest.raises(ModelError, match=rf"model\.{option} gives certified attention no finite bound"):
            AttentionForm("certified", 10.0, epsilon, nu)
    for option in ("norm", "residual", "init"):
        with pytest.raises(ModelError, match=rf"model\.{option}=none is unknown: choose "):
            Parts(**{option: "none"})


@torch.no_grad()
def test_a_block_without_the_parts_equals_its_formula():
    similarity = AttentionForm("dot", 10.0, 1e-6, 1.0).similarity(4)
    assert similarity.scale == 0.5
    block = LipsFormerSwinBlock(8, 2, 3, 4, 0.3, 0.0, similarity, Parts("layernorm", "plain")).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, 6, 3, 8, dtype=torch.float64)
    y = x + literal.conv_branch(block.conv1.branch, x)
    y = y + literal.conv_branch(block.conv2.branch, y)
    y = F.layer_norm(y + literal.window_attention(block.attn.branch, y), (8,), block.norm1.weight, block.norm1.bias)
    y = F.layer_norm(y + literal.mlp(block.mlp.branch, y), (8,), block.norm2.weight, block.norm2.bias)
    torch.testing.assert_close(block(x), y, atol=1e-10, rtol=0)


@pytest.mark.parametrize("family", LIPSFORMERS)
def test_no_part_stays_where_it_is_taken_away(family):
    def kinds(**options: str) -> set[str]:
        return {type(module).__name__ for module in SMALL[family].create(**options).modules()}

    assert not {"LayerNorm", "PlainResidual"} & kinds()
    assert "CenterNorm" not in kinds(norm="layernorm") and "LayerNorm" in kinds(norm="layernorm")
    assert "WeightedResidual" not in kinds(residual="plain") and "PlainResidual" in kinds(residual="plain")


@pytest.mark.parametrize("family", LIPSFORMERS)
def test_xavier_initialisation_is_the_spectral_one_before_it_is_divided(family):
    def weights(init: str) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = SMALL[family].create(init=init)
        return [layer.weight for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]

    for spectral, xavier in zip(weights("spectral"), weights("xavier"), strict=True):
        torch.testing.assert_close(spectral * largest_singular_value(xavier).float(), xavier)


def test_without_a_part_the_bound_names_what_makes_it_infinite():
    certified = SMALL["lipsformer_swin"].but(attention="certified")
    for options, reason in (({"norm": "layernorm"}, "LayerNorm"), ({"attention": "dot"}, "dot-product")):
        report = lipschitz_bound(certified.create(**options))
        assert math.isinf(report.tight) and reason in str(report)
    assert math.isfinite(lipschitz_bound(certified.create(residual="plain", init="xavier")).tight)
