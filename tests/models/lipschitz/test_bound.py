"""Lipschitz bounds of blocks and whole models: never exceeded, reached where that is possible, and readable."""

import math

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import LayerScale, Mlp
from torch import Tensor, nn

import models
from models.layers import ConvBranch, WeightedResidual
from models.lipschitz.bound import DOT_PRODUCT, LAYER_NORM, RAW_VALUES, RMS_NORM
from models.lipschitz.layers import GELU, depthwise_norm
from models.lipsformer_cswin import LipsFormerCSwinBlock
from models.lipsformer_parts import AttentionForm, Parts
from models.lipsformer_swin import LipsFormerSwin, LipsFormerSwinBlock
from models.spectral import largest_singular_value
from stability import local_lipschitz
from tests.jacobians import jacobian, randomise, stretch

SWIN = {"img_size": 28, "patch_size": 2, "embed_dim": 8, "depths": (1, 1), "num_heads": (2, 4), "num_classes": 5}
CSWIN = {
    "img_size": 32,
    "embed_dim": 8,
    "depths": (1, 1, 1, 1),
    "num_heads": (2, 2, 4, 4),
    "stripes": (1, 2, 1, 1),
    "num_classes": 5,
}


@st.composite
def certified_blocks(draw):
    """A certified block of either family, and the shape of its input."""
    dim, heads = draw(st.sampled_from([(2, 1), (4, 2), (6, 2)]))
    temperature = draw(st.floats(0.1, 20))
    epsilon = draw(st.floats(0.01, 2))
    nu = draw(st.floats(0.2, 3))
    similarity = AttentionForm("certified", temperature, epsilon, nu).similarity(dim // heads, heads**-0.5)
    if draw(st.booleans()):
        block: nn.Module = LipsFormerSwinBlock(dim, heads, 2, 2, 0.5, 0.0, similarity, Parts())
        size = draw(st.sampled_from([(2, 2), (2, 4)]))
    else:
        size = draw(st.sampled_from([(2, 2), (4, 2)]))
        width = draw(st.sampled_from([None, 1, 2])) if heads == 2 else None
        block = LipsFormerCSwinBlock(dim, size, heads, width, 2, 0.0, similarity, Parts())
    std = draw(st.floats(0.05, 2))
    return randomise(block, std, draw(st.integers(0, 1000))), (1, *size, dim)


@settings(max_examples=40)
@given(certified_blocks(), st.floats(0.01, 10), st.floats(1e-3, 10), st.integers(0, 1000))
def test_certified_blocks_stay_below_their_bound(block_and_shape, scale, distance, seed):
    block, shape = block_and_shape
    report = models.lipschitz_bound(block, shape)
    assert report.tight <= report.published < math.inf
    generator = torch.Generator().manual_seed(seed)
    x, step = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    x, y = scale * x, scale * x + distance * step
    assert (block(x) - block(y)).norm() <= report.tight * (x - y).norm()
    matrix = jacobian(block, x).detach()
    assert torch.linalg.matrix_norm(matrix, 2) <= report.tight
    # Check the parts too: the slack of one bound could hide an error in another.
    for name, part in block.named_children():
        inside = next(layer.tight for layer in report.layers if layer.name == name)
        assert stretch(part, x) <= inside * (1 + 1e-9), name


def test_whole_models_stay_below_their_bound():
    torch.manual_seed(0)
    for name, options in (("lipsformer_swin_tiny", SWIN), ("lipsformer_cswin_tiny", CSWIN)):
        model = timm.create_model(name, attention="certified", epsilon=1.0, **options)
        report = models.lipschitz_bound(model)
        measured = local_lipschitz(model, torch.randn(2, 3, options["img_size"], options["img_size"])).max()
        assert 0 < measured <= report.tight < report.published < math.inf, name
        assert report.finite and not report.reasons


def test_a_pyramid_inside_another_module_knows_its_input_shape():
    model = timm.create_model("lipsformer_swin_tiny", attention="certified", epsilon=1.0, **SWIN)
    inside = models.lipschitz_bound(nn.Sequential(nn.Identity(), model))
    assert inside.tight == pytest.approx(models.lipschitz_bound(model).tight)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["patch_embed.norm.weight", "stages.0.0.attn.scale", "head.weight"])
def test_weights_that_are_not_finite_have_no_bound(name, value):
    model = timm.create_model("lipsformer_swin_tiny", attention="certified", epsilon=1.0, **SWIN)
    model.get_parameter(name).data.view(-1)[0] = value
    with pytest.raises(models.ModelError, match=f"there is no bound: {name} holds NaN or infinity"):
        models.lipschitz_bound(model)


def test_a_linear_model_reaches_the_bound_of_its_composition():
    """With residuals off and all layers aligned, the bounds of stem, CenterNorms, mean and head multiply exactly."""
    model = LipsFormerSwin(img_size=4, patch_size=2, embed_dim=4, depths=(1,), num_heads=(1,), window_size=2)
    model = model.double()
    model.patch_embed.proj.bias.data.zero_()
    direction = torch.tensor([1.0, -1, 2, -2], dtype=torch.float64)
    model.patch_embed.proj.weight.data.copy_(direction.view(4, 1, 1, 1).expand(4, 3, 2, 2))
    model.head.weight.data.copy_(direction.expand(1000, 4))
    for module in model.modules():
        if isinstance(module, WeightedResidual):
            module.branch, module.scale.data = nn.Identity(), torch.zeros(4)
    report = models.lipschitz_bound(model)
    exact = stretch(model, torch.zeros(1, 3, 4, 4, dtype=torch.float64)).item()
    assert report.tight == pytest.approx(exact, rel=1e-9)
    for module in model.modules():
        if isinstance(module, WeightedResidual):
            module.scale.data = torch.full((4,), 0.25)
    exact = stretch(model, torch.zeros(1, 3, 4, 4, dtype=torch.float64)).item()
    assert exact == pytest.approx(report.tight * 1.25**4)
    assert models.lipschitz_bound(model).tight == pytest.approx(exact, rel=1e-9)


def test_the_bound_of_a_branch_is_the_product_of_its_layers():
    mlp, conv = randomise(Mlp(4, 8), 1, 0), randomise(ConvBranch(4, pointwise=True), 1, 0)
    norms = [largest_singular_value(layer.weight).item() for layer in (mlp.fc1, mlp.fc2, conv.pointwise)]
    assert models.lipschitz_bound(mlp).tight == pytest.approx(norms[0] * GELU * norms[1])
    depthwise = depthwise_norm(conv.depthwise.weight, (3, 3))
    assert models.lipschitz_bound(conv, (1, 3, 3, 4)).tight == pytest.approx(depthwise * norms[2] * GELU**2)


def test_infinite_bounds_have_reasons_with_layer_names():
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1)
    released = timm.create_model("lipsformer_swin_tiny", **SWIN)
    expected = {
        released: {RAW_VALUES},
        timm.create_model("lipsformer_cswin_tiny", **CSWIN): {RAW_VALUES},
        timm.create_model("cswin_tiny", **CSWIN): {DOT_PRODUCT, LAYER_NORM},
        vit: {DOT_PRODUCT, LAYER_NORM, "no bound is known for VisionTransformer"},
        timm.create_model("resnet18"): {"no bound is known for ResNet", "no bound is known for BatchNorm2d"},
    }
    for model, reasons in expected.items():
        report = models.lipschitz_bound(model)
        assert report.tight == report.published == math.inf and not report.finite
        assert reasons <= set(report.reasons)
        assert all(bool(layer.reason) == (layer.tight == math.inf) for layer in report.layers)
    assert models.lipschitz_bound(vit).reasons[DOT_PRODUCT] == ["blocks.0.attn"]
    assert set(models.lipschitz_bound(released).reasons) == {RAW_VALUES}


def test_a_subclass_with_its_own_forward_has_no_bound():
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    assert models.lipschitz_bound(nn.Sequential(Doubled(2, 2))).reasons == {"no bound is known for Doubled": ["0"]}
    for layer in (nn.GELU("tanh"), nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular")):
        assert not models.lipschitz_bound(layer).finite


def test_deep_products_do_not_overflow():
    layers = [nn.Linear(2, 2, bias=False) for _ in range(400)]
    for layer in layers:
        layer.weight.data = 10 * torch.eye(2)
    report = models.lipschitz_bound(nn.Sequential(*layers))
    assert report.finite and report.log10_tight == pytest.approx(400)
    assert report.tight == math.inf and "10^400.00" in str(report)
    assert models.lipschitz_bound(WeightedResidual(nn.Sequential(*layers), 2, 0.1)).log10_tight == pytest.approx(399)
    nn.init.zeros_(layers[0].weight)
    assert models.lipschitz_bound(nn.Sequential(*layers)).tight == 0


def test_the_table_has_a_line_for_each_layer():
    report = models.lipschitz_bound(timm.create_model("lipsformer_swin_tiny", **SWIN))
    lines = str(report).splitlines()
    assert len(lines) == len(report.layers) + 2
    line = next(line for line in lines if line.lstrip().startswith("stages.0.0.attn.branch "))
    assert line.split()[1:4] == ["WindowAttention", "∞", "∞"] and line.endswith(RAW_VALUES)


def test_the_model_is_not_changed():
    model = timm.create_model("lipsformer_swin_tiny", **SWIN)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    models.lipschitz_bound(model)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert all(module.training and not module._forward_pre_hooks for module in model.modules())


def test_a_wrong_input_shape_is_refused_in_one_line():
    with pytest.raises(models.ModelError, match=r"takes no input of shape \(1, 5\)") as error:
        models.lipschitz_bound(nn.Linear(4, 4), (1, 5))
    assert "\n" not in str(error.value)


def test_the_reasons_of_vit5_are_those_of_its_parts():
    model = timm.create_model("vit5_small", img_size=32, embed_dim=16, depth=1, num_heads=2, num_classes=3)
    reasons = models.lipschitz_bound(model).reasons
    assert RMS_NORM in reasons and DOT_PRODUCT in reasons
    scale = LayerScale(4, init_values=0.5)
    nn.init.constant_(scale.gamma[1:2], -2.0)
    assert models.lipschitz_bound(scale).tight == 2.0
