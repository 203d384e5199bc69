"""The norms of ``model.norm``: their formulas, where they stand in a model, and their Lipschitz constants."""

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import RmsNorm
from torch import nn

import models
from models.norms import DyT
from tests.families import SMALL

KINDS = {"layernorm": nn.LayerNorm, "rmsnorm": RmsNorm, "dyt": DyT}


def test_dyt_is_the_paper_s_formula():
    layer, x = DyT(5).double(), torch.randn(2, 3, 5, dtype=torch.float64)
    assert torch.equal(layer(x), torch.tanh(0.5 * x))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    expected = torch.stack(
        [layer.weight[i] * torch.tanh(layer.alpha * x[..., i]) + layer.bias[i] for i in range(5)], -1
    )
    assert torch.allclose(layer(x), expected, atol=0, rtol=1e-15)
    assert torch.autograd.gradcheck(layer, (x.requires_grad_(),))


@pytest.mark.parametrize("norm", KINDS)
@pytest.mark.parametrize("position", ["pre", "post"])
def test_it_takes_the_place_of_every_norm(norm, position):
    model = SMALL["vit"].but(norm=norm, norm_position=position).create()
    found = [module for module in model.modules() if isinstance(module, tuple(KINDS.values()))]
    assert len(found) == 2 * 2 + (position == "pre") and all(isinstance(module, KINDS[norm]) for module in found)


def test_rmsnorm_in_a_model_is_torch_s():
    model, x = SMALL["vit"].but(norm="rmsnorm").create(), torch.randn(2, 4, 24)
    layer = model.blocks[0].norm1
    assert torch.allclose(layer(x), F.rms_norm(x, (24,), layer.weight, 1e-6), atol=1e-6)


def test_layernorm_is_timm_s_model_as_before():
    ours = timm.create_model("deit_tiny").state_dict()
    theirs = timm.create_model("deit_tiny_patch16_224").state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


def test_the_bound_of_dyt_is_known_and_is_reached():
    layer = DyT(3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, -3.0, 2.0]))
        layer.alpha.fill_(-0.4)
    assert models.lipschitz_bound(layer).tight == pytest.approx(1.2)
    zero = torch.zeros(3)
    slope = torch.autograd.functional.jacobian(layer, zero)
    assert torch.linalg.matrix_norm(slope, 2).item() == pytest.approx(1.2)
    report = str(models.lipschitz_bound(SMALL["vit"].but(norm="rmsnorm").create()))
    assert "RMSNorm: it divides by" in report


def test_sigma_reparam_has_no_norms_to_choose():
    with pytest.raises(models.ModelError, match=r"removes all norms, so model\.norm=dyt does nothing: leave it out"):
        SMALL["vit"].but(norm="dyt", stabilizer="sigma_reparam").create()
