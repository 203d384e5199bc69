"""CSWin and LipsFormer-CSwin: blocks against their formulas, sizes of maps and stripes, refused sizes."""

import pytest
import timm
import torch
from torch import nn

import models
from models.attention import StripeAttention
from models.cswin import CSwinBlock
from models.lipsformer_cswin import LipsFormerCSwinBlock
from models.lipsformer_parts import AttentionForm, Parts
from tests import literal

SMALL = {"img_size": 32, "embed_dim": 8, "depths": (1, 1, 1), "num_heads": (2, 2, 4), "stripes": (1, 2, 2)}


def small(name: str, **changes) -> nn.Module:
    return timm.create_model(name, **(SMALL | {"num_classes": 5} | changes))


def randomised(block: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    return block.double()


@pytest.mark.parametrize("width", [2, None])
@torch.no_grad()
def test_plain_block_equals_the_released_arithmetic(width):
    block = randomised(CSwinBlock(8, (4, 4), 4, width, mlp_ratio=4, drop_path=0.0))
    x = torch.randn(2, 4, 4, 8, dtype=torch.float64)
    y = x + literal.cross_shaped_attention(block.attn, literal.layer_norm(block.norm1, x))
    y = y + literal.mlp(block.mlp, literal.layer_norm(block.norm2, y))
    torch.testing.assert_close(block(x), y, atol=1e-10, rtol=0)
    assert block.attn.stripes[0].similarity.scale == 2**-0.5  # one over the root of a head's channels


@torch.no_grad()
def test_each_branch_of_a_plain_block_is_dropped_by_itself():
    block = randomised(CSwinBlock(8, (4, 4), 4, 2, mlp_ratio=4, drop_path=0.5)).train()
    x = torch.randn(1, 4, 4, 8, dtype=torch.float64)
    after_attention = (x, x + block.attn(block.norm1(x)) / 0.5)
    expected = [*after_attention, *(y + block.mlp(block.norm2(y)) / 0.5 for y in after_attention)]
    outputs = block(x.expand(64, -1, -1, -1)).split(1)
    assert all(any(torch.allclose(out, one) for one in expected) for out in outputs)
    assert all(any(torch.allclose(out, one) for out in outputs) for one in expected)


@pytest.mark.parametrize("width", [2, None])
@torch.no_grad()
def test_lipsformer_block_equals_the_released_arithmetic(width):
    similarity = AttentionForm("released", 12.0, 1e-6, 1.0).similarity(2, gain=0.5)
    block = randomised(LipsFormerCSwinBlock(8, (4, 4), 4, width, 4, 0.0, similarity, Parts()))
    x = torch.randn(2, 4, 4, 8, dtype=torch.float64)
    y = x + block.conv1.scale * literal.conv_branch(block.conv1.branch, x)
    y = y + block.conv2.scale * literal.conv_branch(block.conv2.branch, y)
    y = y + block.attn.scale * literal.cross_shaped_attention(block.attn.branch, y)
    y = literal.center_norm(block.norm, y + block.mlp.scale * literal.mlp(block.mlp.branch, y))
    torch.testing.assert_close(block(x), y, atol=1e-10, rtol=0)


def test_stripes_and_gains_are_those_of_the_published_model():
    with torch.device("meta"):
        model = timm.create_model("lipsformer_cswin_tiny")
    stripes = [[m for m in stage[-1].modules() if isinstance(m, StripeAttention)] for stage in model.stages.children()]
    assert [[s.stripe for s in stage] for stage in stripes] == [
        [(56, 1), (1, 56)],
        [(28, 2), (2, 28)],
        [(14, 7), (7, 14)],
        [(7, 7)],
    ]
    # One over the square root of a branch's heads: half of 2, 4 and 8, and all 16 in the last stage.
    assert [stage[0].similarity.gain for stage in stripes] == pytest.approx([1, 2**-0.5, 0.5, 0.25])
    assert {stage[0].similarity.scale for stage in stripes} == {12.0}
    assert model.stages[0][0].attn.scale.shape == (64,)


@pytest.mark.parametrize("name", ["cswin_tiny", "lipsformer_cswin_tiny"])
def test_models_of_other_image_sizes_work(name):
    assert small(name, img_size=64)(torch.randn(1, 3, 64, 64)).shape == (1, 5)
    assert small(name, img_size=(32, 64))(torch.randn(1, 3, 32, 64)).shape == (1, 5)
    assert small(name, img_size=48, stripes=(3, 2, 2))(torch.randn(1, 3, 48, 48)).shape == (1, 5)
    assert small(name, img_size=96, stripes=(1, 3, 7))(torch.randn(1, 3, 96, 96)).shape == (1, 5)
    # A map as small as a stripe has one branch over the whole map, in any stage.
    whole = small(name, img_size=16, stripes=(1, 2, 1))
    assert [len([m for m in s.modules() if isinstance(m, StripeAttention)]) for s in whole.stages] == [2, 1, 1]


@pytest.mark.parametrize("name", ["cswin_tiny", "lipsformer_cswin_tiny"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"img_size": 36}, "image size 36 does not fit: with 3 stages it must be a multiple of 16, such as 32 or 48"),
        (
            {"stripes": (3, 2, 2)},
            r"stage 1: stripes of width 3 do not divide its map of \(8, 8\) tokens: .* multiples of 48",
        ),
        (
            {"img_size": 80, "stripes": (1, 3, 7)},
            "stage 2: stripes of width 3 .* image sizes that are multiples of 48",
        ),
        ({"stripes": (0, 2, 2)}, r"model.stripes=\(0, 2, 2\) must be 1 or more"),
        ({"mlp_ratio": -1.0}, "model.mlp_ratio=-1 gives no valid hidden width for 8 channels"),
        ({"embed_dim": 0}, "model.embed_dim=0 must be 1 or more"),
        ({"stripes": (1, 2)}, "model.depths has 3 stages and model.stripes has 2: give both the same length"),
        ({"num_heads": (1, 2, 4)}, "stage 1: 1 heads cannot be split in two"),
        ({"num_heads": (2, 3, 4)}, "stage 2: 3 heads do not divide 16 channels"),
        ({"num_heads": (2, 2)}, "model.depths has 3 stages and model.num_heads has 2"),
    ],
)
def test_impossible_shapes_are_refused_in_one_line(name, changes, message):
    with pytest.raises(models.ModelError, match=message):
        small(name, **changes)


@pytest.mark.parametrize(
    ("name", "embed", "merge"), [("cswin_tiny", (7, 4, 2), (3, 2, 1)), ("lipsformer_cswin_tiny", (4, 4, 0), (2, 2, 0))]
)
def test_the_convolutions_before_the_stages_are_those_of_the_released_code(name, embed, merge):
    """Kernel, stride and padding. The shapes of weights do not show the last two."""
    with torch.device("meta"):
        model = small(name)
    convolutions = [model.patch_embed.proj, *(stage[0].conv for stage in model.stages[1:])]
    found = [(layer.kernel_size[0], layer.stride[0], layer.padding[0]) for layer in convolutions]
    assert found == [embed, merge, merge]
