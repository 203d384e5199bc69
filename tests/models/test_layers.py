"""The layers of all LipsFormer models against their formulas."""

import pytest
import torch
from torch import nn

from models.layers import CenterNorm, ConvBranch, ConvEmbed, ConvMerge, PlainResidual, WeightedResidual
from tests import literal


def test_center_norm_is_lipschitz_with_the_stated_constant():
    norm = CenterNorm(6).double()
    nn.init.normal_(norm.weight)
    jacobian = torch.autograd.functional.jacobian(norm, torch.randn(6, dtype=torch.float64))
    bound = norm.weight.abs().max() * 6 / 5
    assert torch.linalg.matrix_norm(jacobian, 2) <= bound + 1e-12
    x = torch.randn(4, 6, dtype=torch.float64)
    expected = norm.weight * (6 / 5) * (x - x.mean(-1, keepdim=True)) + norm.bias
    torch.testing.assert_close(norm(x), expected)


@pytest.mark.parametrize("kind", [WeightedResidual, PlainResidual])
@torch.no_grad()
def test_a_residual_drops_the_branch_of_whole_images_and_keeps_its_expected_value(kind):
    residual, x = kind(nn.Identity(), 2, init_scale=1.0, drop_path=0.25), torch.ones(10_000, 1, 1, 2)
    added = residual.train()(x) - x
    assert torch.equal(added[..., 0], added[..., 1])
    assert added.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert added.mean().item() == pytest.approx(1, abs=0.03)  # five standard deviations
    assert torch.equal(residual.eval()(x), 2 * x)


def test_convolution_branches_equal_their_formula():
    torch.manual_seed(0)
    x = torch.randn(2, 5, 4, 6, dtype=torch.float64)
    for pointwise in (True, False):
        branch = ConvBranch(6, pointwise).double()
        torch.testing.assert_close(branch(x), literal.conv_branch(branch, x), atol=1e-10, rtol=0)


def test_embedding_and_merging_are_a_convolution_and_a_norm():
    embed = ConvEmbed(3, 6, CenterNorm(6), kernel_size=7, stride=4, padding=2)
    images = torch.randn(2, 3, 16, 24)
    tokens = embed(images)
    assert tokens.shape == (2, 4, 6, 6) and tokens.is_contiguous()
    expected = literal.center_norm(embed.norm, embed.proj(images).permute(0, 2, 3, 1))
    torch.testing.assert_close(tokens, expected)
    merge = ConvMerge(6, 12, nn.LayerNorm(12), kernel_size=3, padding=1)
    expected = literal.layer_norm(merge.norm, merge.conv(tokens.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
    assert expected.shape == (2, 2, 3, 12)
    torch.testing.assert_close(merge(tokens), expected, atol=1e-5, rtol=1e-5)
