"""Lipschitz bounds against exact Jacobians, at inputs where the constant is attained wherever there are such."""

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import Mlp
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import models
from models.attention import CrossShapedAttention, Similarity, WindowAttention, lipsformer_similarity
from models.depthwise import DepthwiseConv2d
from models.layers import ConvBranch, WeightedResidual
from models.lipschitz import DOT_PRODUCT, LAYER_NORM, RAW_VALUES
from models.lipschitz_layers import GELU, attention_slopes, conv_bound, depthwise_fft_bounds, depthwise_norm
from models.lipsformer_cswin import LipsFormerCSwinBlock
from models.lipsformer_swin import LipsFormerSwin, LipsFormerSwinBlock
from models.spectral import largest_singular_value
from stability import local_lipschitz

SWIN = {"img_size": 28, "patch_size": 2, "embed_dim": 8, "depths": (1, 1), "num_heads": (2, 4), "num_classes": 5}
CSWIN = {
    "img_size": 32,
    "embed_dim": 8,
    "depths": (1, 1, 1, 1),
    "num_heads": (2, 2, 4, 4),
    "stripes": (1, 2, 1, 1),
    "num_classes": 5,
}


def jacobian(function, x: Tensor) -> Tensor:
    """The Jacobian as a matrix, differentiable."""
    with sdpa_kernel(SDPBackend.MATH):
        return torch.func.jacrev(lambda flat: function(flat.view(x.shape)).flatten())(x.flatten())


def stretch(function, x: Tensor) -> Tensor:
    """The largest singular value of the Jacobian at ``x``."""
    return torch.linalg.matrix_norm(jacobian(function, x), 2)


def randomise(module: nn.Module, std: float, seed: int) -> nn.Module:
    """Normal parameters, in float64."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.double().parameters():
        nn.init.normal_(parameter, std=std, generator=generator)
    return module


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(7, 5), (3, 7)),
        (nn.Conv2d(3, 5, 1), (1, 3, 4, 4)),
        (nn.Conv2d(2, 6, 3, stride=3), (1, 2, 6, 9)),
        (nn.Conv2d(2, 6, 2, stride=3), (1, 2, 6, 6)),
        (nn.Conv2d(4, 6, 2, stride=2, groups=2), (1, 4, 4, 4)),
    ],
)
def test_layers_that_read_each_number_once_have_an_exact_constant(layer, shape):
    report = models.lipschitz_bound(randomise(layer, 1, 0))
    exact = stretch(layer, torch.zeros(shape, dtype=torch.float64)).item()
    assert report.published == pytest.approx(exact, rel=1e-9)
    assert report.tight == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 3, 7, stride=4, padding=2),
        nn.Conv2d(2, 3, 3, stride=2, padding=1),
        nn.Conv2d(2, 3, 3, padding=1),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2),
        nn.Conv2d(2, 3, 2, stride=2, dilation=2),
    ],
)
def test_overlapping_convolutions_stay_below_their_bound(layer):
    """Kernels of one sign come near to it, and above σ₁ of the reshaped matrix wherever patches overlap."""
    layer = randomise(layer, 0.1, 0)
    layer.weight.data.abs_().add_(1)
    exact = stretch(layer, torch.zeros(1, layer.in_channels, 16, 16, dtype=torch.float64)).item()
    assert exact <= conv_bound(layer) <= 1.5 * exact
    reshaped = largest_singular_value(layer.weight[: layer.out_channels // layer.groups]).item()
    assert exact > 1.1 * reshaped


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (6, 6)])
@pytest.mark.parametrize("kernel", [3, 7])
def test_depthwise_fft_bound_exceeds_the_exact_value_and_that_any_measured(size, kernel):
    layer = randomise(DepthwiseConv2d(3, kernel), 1, kernel)
    bounds = depthwise_fft_bounds(layer.weight, size)
    power = depthwise_norm(layer.weight, size)
    x = torch.randn(1, 3, *size, dtype=torch.float64)
    exact = stretch(layer, x).item()
    measured = (F.conv2d(x, layer.weight, padding=kernel // 2, groups=3).norm() / x.norm()).item()
    assert measured < exact <= power * (1 + 1e-9) <= bounds.max().item() * (1 + 1e-9)
    assert power <= exact * (1 + 1e-5)
    for channel, bound in enumerate(bounds):
        one = layer.weight[channel : channel + 1]
        assert stretch(lambda y, one=one: F.conv2d(y, one, padding=kernel // 2), x[:, :1]) <= bound + 1e-9


@pytest.mark.parametrize("seed", range(10))
def test_crowded_singular_values_do_not_make_it_err_low(seed):
    """On maps too large for the exact number of steps; plain power iteration ends up to 0.3 % too low on some."""
    layer = randomise(DepthwiseConv2d(2, 3 + 2 * (seed % 3)), 1, seed)
    eye = torch.eye(13 * 12, dtype=torch.float64).view(-1, 1, 13, 12)
    operators = [F.conv2d(eye, kernel[None], padding="same").flatten(1) for kernel in layer.weight.detach()]
    exact = max(torch.linalg.matrix_norm(operator, 2).item() for operator in operators)
    for tolerance in (5e-3, 0.05):
        assert exact <= depthwise_norm(layer.weight, (13, 12), tolerance) <= (1 + 1.2 * tolerance) * exact


def test_without_padding_the_fourier_transform_misses_the_peak():
    """Alternating signs peak at half a period a pixel; the frequencies of 5 pixels are not near to that."""
    kernel = torch.tensor([-1.0, 1, -1], dtype=torch.float64)
    weight = (kernel[:, None] * kernel).view(1, 1, 3, 3)
    x = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    exact = stretch(lambda x: F.conv2d(x, weight, padding=1), x).item()
    assert torch.fft.fft2(weight, s=(5, 5)).abs().max().item() < 0.95 * exact
    assert exact == pytest.approx(depthwise_norm(weight, (5, 5)))
    assert exact <= depthwise_fft_bounds(weight, (5, 5)).item() <= 9


def test_the_reshaped_matrix_says_nothing_of_a_depthwise_convolution():
    layer = DepthwiseConv2d(1, 3).double()
    nn.init.ones_(layer.weight)
    exact = stretch(layer, torch.zeros(1, 1, 8, 8, dtype=torch.float64)).item()
    assert largest_singular_value(layer.weight).item() == pytest.approx(3)
    assert exact > 8
    assert exact <= models.lipschitz_bound(layer, (1, 1, 8, 8)).tight <= 1.006 * exact
    assert models.lipschitz_bound(layer, (1, 1, 8, 8)).published == pytest.approx(9)
    assert models.lipschitz_bound(layer).tight >= exact


def test_gelu_constant_is_its_largest_slope():
    x = torch.linspace(-8, 8, 1_000_001, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(F.gelu(x).sum(), x)
    assert slope.abs().max().item() == pytest.approx(GELU, abs=1e-9)
    assert pytest.approx(1.1289, abs=5e-5) == GELU


def test_published_formulas_give_the_published_numbers():
    def bound(form, tokens, temperature, epsilon):
        return sum(attention_slopes(form, tokens, temperature)) / math.sqrt(epsilon)

    assert bound("published", 9, 10, 0.1) == pytest.approx(5117, abs=0.5)
    assert bound("half_softmax", 9, 10, 0.1) == pytest.approx(2903, abs=0.5)
    assert bound("tight", 9, 10, 0.1) == pytest.approx(294, abs=0.5)
    assert bound("tight", 4, 1, 1) == pytest.approx(6)
    for tokens in (1, 2, 3, 49):
        pairs = zip(attention_slopes("tight", tokens, 3), attention_slopes("published", tokens, 3), strict=True)
        assert all(tight <= published for tight, published in pairs)


def certified_window(tokens: int, epsilon: float, temperature: float) -> WindowAttention:
    """One head whose four matrices are the identity."""
    side = math.isqrt(tokens)
    attention = WindowAttention(4, side, 1, lipsformer_similarity("certified", temperature, epsilon, nu=1)).double()
    attention.qkv.weight.data.copy_(torch.eye(4).repeat(3, 1))
    attention.proj.weight.data.copy_(torch.eye(4))
    for bias in (attention.qkv.bias, attention.proj.bias, attention.relative_position_bias_table):
        nn.init.zeros_(bias)
    return attention


def test_gradient_ascent_over_inputs_stays_below_the_bound():
    """N = 4, ε = 1, τ = 1: small enough that what is measured comes near."""
    attention = certified_window(4, epsilon=1, temperature=1)
    report = models.lipschitz_bound(attention)
    assert report.tight == pytest.approx(6)
    assert report.published == pytest.approx(38)
    found = 0.0
    for seed in range(3):
        x = torch.randn(1, 2, 2, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        x.requires_grad_()
        optimizer = torch.optim.Adam([x], lr=0.05)
        for _ in range(60):
            value = stretch(attention, x)
            optimizer.zero_grad()
            (-value).backward()
            optimizer.step()
            found = max(found, value.item())
    assert 0.99 <= found <= report.tight <= report.published


TINY = 1e-6  # weight of what shall be of unit length without adding to the bound


def attained(moving: str, heads: int, branches: int) -> tuple[CrossShapedAttention, Tensor]:
    """Attention over stripes of two tokens, and an input at which its constant is that of the tight form.

    The first channel is ±10⁹, alternating, which makes values, and keys or queries, unit vectors of either sign; the
    second is zero, where the slope of the normalisation is greatest, and moves what ``moving`` says.
    """
    size, stripe = ((1, 2), None) if branches == 1 else ((2, 2), 1)
    similarity = Similarity(3.0, "qkv", epsilon=0.25, gain=0.7)
    attention = CrossShapedAttention(4, size, heads, stripe, similarity).double()
    for parameter in attention.parameters():
        nn.init.zeros_(parameter)
    attention.proj.weight.data.copy_(torch.eye(4))
    query, key, value = attention.qkv.weight.data.view(3, heads, 4 // heads, 4).unbind(0)
    value[:, 0, 0] = TINY
    if moving == "queries":
        query[:, 0, 1], key[:, 0, 0] = 1, TINY
    else:
        key[:, 0, 1] = 1
        attention.qkv.bias.data.view(3, heads, 4 // heads)[0, :, 0] = 1e3
    rows, columns = torch.meshgrid(*(torch.arange(side) for side in size), indexing="ij")
    x = torch.zeros(1, *size, 4, dtype=torch.float64)
    x[0, ..., 0] = 1e9 * (1.0 - 2 * ((rows + columns) % 2))
    return attention, x


@pytest.mark.parametrize("moving", ["queries", "keys"])
@pytest.mark.parametrize(("heads", "branches"), [(1, 1), (2, 1), (2, 2)])
def test_the_tight_bound_is_attained_in_queries_and_in_keys(moving, heads, branches):
    """With N = 2, for one head, for several and for both branches: any smaller bound is wrong."""
    attention, x = attained(moving, heads, branches)
    report = models.lipschitz_bound(attention, tuple(x.shape))
    measured = stretch(attention, x).item()
    assert report.tight == pytest.approx(3.0 * 0.7 * 2 * math.sqrt(heads), rel=1e-4)
    assert 0.999 * report.tight <= measured <= report.tight <= report.published


def test_the_tight_bound_is_attained_in_values_whatever_the_position_bias():
    """A bias that sends all tokens to the first makes ‖P‖₂ = √N; it is no part of the bound."""
    attention = certified_window(9, epsilon=0.25, temperature=0)
    attention.qkv.weight.data[:8] = 0
    before = models.lipschitz_bound(attention)
    offsets = torch.arange(5.0)
    attention.relative_position_bias_table.data.copy_(100 * (offsets[:, None] + offsets).view(-1, 1))
    report = models.lipschitz_bound(attention)
    assert report == before
    measured = stretch(attention, torch.zeros(1, 3, 3, 4, dtype=torch.float64)).item()
    assert measured == pytest.approx(report.tight, rel=1e-6)
    assert report.tight == pytest.approx(3 / 0.5)


def test_lepe_acts_on_the_normalised_values():
    attention, x = attained("queries", heads=2, branches=2)
    nn.init.zeros_(attention.qkv.weight)
    attention.qkv.weight.data[8:].copy_(torch.eye(4))
    for stripe in attention.stripes:
        stripe.lepe.weight.data[:, :, 1, 1] = 5
    report = models.lipschitz_bound(attention, tuple(x.shape))
    measured = stretch(attention, 0 * x).item()
    assert measured == pytest.approx(0.7 * 2 * (1 + 5))
    assert measured <= report.tight == pytest.approx(0.7 * 2 * (math.sqrt(2) + 5), rel=1e-3)
    assert report.tight <= report.published


def test_heads_are_bounded_by_their_own_matrices_where_that_is_less():
    """A head without queries and keys adds only its values; the whole matrices would multiply all of them."""
    attention = certified_window(4, epsilon=1, temperature=1)
    attention.num_heads = 2
    weight = attention.qkv.weight.data.view(3, 2, 2, 4)
    weight[:, 0], weight[2, 1] = 0, 0
    assert models.lipschitz_bound(attention).tight == pytest.approx(4)
    weight[2, 0] = torch.eye(4)[:2]
    assert models.lipschitz_bound(attention).tight == pytest.approx(math.sqrt(4**2 + 2**2))


def test_one_token_attends_to_itself():
    attention = certified_window(1, epsilon=1, temperature=1000)
    report = models.lipschitz_bound(attention)
    measured = stretch(attention, torch.zeros(1, 1, 1, 4, dtype=torch.float64)).item()
    assert measured == pytest.approx(report.tight) == 1


@st.composite
def certified_blocks(draw):
    """A certified block of either family, and the shape of its input."""
    dim, heads = draw(st.sampled_from([(2, 1), (4, 2), (6, 2)]))
    temperature = draw(st.floats(0.1, 20))
    epsilon = draw(st.floats(0.01, 2))
    nu = draw(st.floats(0.2, 3))
    similarity = lipsformer_similarity("certified", temperature, epsilon, nu, heads**-0.5)
    if draw(st.booleans()):
        block: nn.Module = LipsFormerSwinBlock(dim, heads, 2, 2, 0.5, 0.0, similarity)
        size = draw(st.sampled_from([(2, 2), (2, 4)]))
    else:
        size = draw(st.sampled_from([(2, 2), (4, 2)]))
        width = draw(st.sampled_from([None, 1, 2])) if heads == 2 else None
        block = LipsFormerCSwinBlock(dim, size, heads, width, 2, 0.0, similarity)
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
    # The parts too: a wrong one could hide behind the slack of another.
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


def test_the_composition_is_attained_by_a_linear_model():
    """Residuals off and all layers aligned: stem, CenterNorms, mean over tokens and head multiply without slack."""
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


def test_branches_multiply_their_layers():
    mlp, conv = randomise(Mlp(4, 8), 1, 0), randomise(ConvBranch(4, pointwise=True), 1, 0)
    norms = [largest_singular_value(layer.weight).item() for layer in (mlp.fc1, mlp.fc2, conv.pointwise)]
    assert models.lipschitz_bound(mlp).tight == pytest.approx(norms[0] * GELU * norms[1])
    depthwise = depthwise_norm(conv.depthwise.weight, (3, 3))
    assert models.lipschitz_bound(conv, (1, 3, 3, 4)).tight == pytest.approx(depthwise * norms[2] * GELU**2)


def test_infinite_bounds_have_named_reasons():
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


def test_a_subclass_that_computes_something_else_is_unknown():
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


def test_the_model_stays_as_it_is():
    model = timm.create_model("lipsformer_swin_tiny", **SWIN)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    models.lipschitz_bound(model)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert all(module.training and not module._forward_pre_hooks for module in model.modules())


def test_a_wrong_input_shape_is_one_line():
    with pytest.raises(models.ModelError, match=r"takes no input of shape \(1, 5\)") as error:
        models.lipschitz_bound(nn.Linear(4, 4), (1, 5))
    assert "\n" not in str(error.value)
