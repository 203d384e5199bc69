"""Constants of layers and of certified attention against exact Jacobians, at inputs that reach them."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models
from models.attention import CrossShapedAttention, WindowAttention
from models.depthwise import DepthwiseConv2d
from models.lipschitz.layers import GELU, Heads, attention_slopes, conv_bound, depthwise_fft_bounds, depthwise_norm
from models.lipsformer_parts import AttentionForm
from models.similarity import Similarity
from models.spectral import largest_singular_value
from tests.jacobians import randomise, stretch


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
def test_layers_that_use_each_input_value_once_have_an_exact_constant(layer, shape):
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
    """Kernels of one sign come close to it. Where patches overlap, they exceed σ₁ of the reshaped matrix.

    Of several groups, the last has the largest weights.
    """
    layer = randomise(layer, 0.1, 0)
    layer.weight.data.abs_().add_(1)
    last = layer.weight[-(layer.out_channels // layer.groups) :]
    last.data *= 10
    exact = stretch(layer, torch.zeros(1, layer.in_channels, 16, 16, dtype=torch.float64)).item()
    assert exact <= conv_bound(layer) <= 1.5 * exact
    assert exact > 1.1 * largest_singular_value(last).item()


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (6, 6)])
@pytest.mark.parametrize("kernel", [3, 7])
def test_the_exact_depthwise_norm_lies_between_measured_values_and_the_fft_bound(size, kernel):
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
def test_the_depthwise_norm_is_not_too_low_if_singular_values_are_close_together(seed):
    """The maps are too large for the exact number of steps. On some, power iteration is up to 0.3 % too low."""
    layer = randomise(DepthwiseConv2d(2, 3 + 2 * (seed % 3)), 1, seed)
    eye = torch.eye(13 * 12, dtype=torch.float64).view(-1, 1, 13, 12)
    operators = [F.conv2d(eye, kernel[None], padding="same").flatten(1) for kernel in layer.weight.detach()]
    exact = max(torch.linalg.matrix_norm(operator, 2).item() for operator in operators)
    for tolerance in (5e-3, 0.05):
        assert exact <= depthwise_norm(layer.weight, (13, 12), tolerance) <= (1 + 1.2 * tolerance) * exact
    # With so small a tolerance μ is exact here, and what is left is the margin: √(μ / (1 − ε)) with ε twice as large.
    assert depthwise_norm(layer.weight, (13, 12), 5e-3) == pytest.approx(exact / math.sqrt(1 - 2 * 5e-3), rel=1e-6)


def test_without_padding_the_fourier_transform_misses_the_peak():
    """Alternating signs peak at the highest frequency, half a period per pixel. 5 pixels have no frequency near it."""
    kernel = torch.tensor([-1.0, 1, -1], dtype=torch.float64)
    weight = (kernel[:, None] * kernel).view(1, 1, 3, 3)
    x = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    exact = stretch(lambda x: F.conv2d(x, weight, padding=1), x).item()
    assert torch.fft.fft2(weight, s=(5, 5)).abs().max().item() < 0.95 * exact
    assert exact == pytest.approx(depthwise_norm(weight, (5, 5)))
    assert exact <= depthwise_fft_bounds(weight, (5, 5)).item() <= 9


def test_the_norm_of_a_depthwise_convolution_can_exceed_that_of_the_reshaped_matrix():
    layer = DepthwiseConv2d(1, 3).double()
    nn.init.ones_(layer.weight)
    exact = stretch(layer, torch.zeros(1, 1, 8, 8, dtype=torch.float64)).item()
    assert largest_singular_value(layer.weight).item() == pytest.approx(3)
    assert exact > 8
    assert exact <= models.lipschitz_bound(layer, (1, 1, 8, 8)).tight <= 1.006 * exact
    assert models.lipschitz_bound(layer, (1, 1, 8, 8)).published == pytest.approx(9)
    assert models.lipschitz_bound(layer).tight >= exact


def test_the_gelu_constant_is_its_largest_slope():
    x = torch.linspace(-8, 8, 1_000_001, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(F.gelu(x).sum(), x)
    assert slope.abs().max().item() == pytest.approx(GELU, abs=1e-9)
    assert pytest.approx(1.1289, abs=5e-5) == GELU


def test_published_formulas_give_the_published_numbers():
    def bound(form, tokens, temperature, epsilon):
        return sum(attention_slopes(form, tokens, temperature)) / math.sqrt(epsilon)

    assert bound("published", 9, 10, 0.1) == pytest.approx(5117, abs=0.5)
    assert bound("tight", 9, 10, 0.1) == pytest.approx(294, abs=0.5)
    assert bound("tight", 4, 1, 1) == pytest.approx(6)
    for tokens in (1, 2, 3, 49):
        pairs = zip(attention_slopes("tight", tokens, 3), attention_slopes("published", tokens, 3), strict=True)
        assert all(tight <= published for tight, published in pairs)


@pytest.mark.parametrize(("form", "value"), [("published", 2 * 3 + 7.0), ("tight", math.sqrt(3) + 2.0)])
def test_each_form_of_the_bound_takes_its_own_form_for_lepe(form, value):
    heads = Heads(count=2, tokens=3, temperature=1.0, epsilon=0.25, gain=-0.5, lepe=(7.0, 2.0))
    assert heads.slopes(form)[:, 2].tolist() == pytest.approx([value, value])  # gain / √ε is 1 in size


def certified_window(tokens: int, epsilon: float, temperature: float) -> WindowAttention:
    """Window attention with one head, whose query, key, value and output matrices are the identity."""
    side = math.isqrt(tokens)
    similarity = AttentionForm("certified", temperature, epsilon, nu=1).similarity(4)
    attention = WindowAttention(4, side, 1, similarity).double()
    attention.qkv.weight.data.copy_(torch.eye(4).repeat(3, 1))
    attention.proj.weight.data.copy_(torch.eye(4))
    for bias in (attention.qkv.bias, attention.proj.bias, attention.relative_position_bias_table):
        nn.init.zeros_(bias)
    return attention


def test_gradient_ascent_over_inputs_stays_below_the_bound():
    """N = 4, ε = 1, τ = 1: the bound is so small that a measured value comes close to it."""
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


TINY = 1e-6  # a weight that adds almost nothing to the bound; a large input still gives vectors of unit length


def attained(moving: str, heads: int, branches: int, gain: float = 0.7) -> tuple[CrossShapedAttention, Tensor]:
    """Attention over stripes of two tokens, and an input at which its constant is that of the tight form.

    The first input channel alternates between 10⁹ and −10⁹, so values become unit vectors of both signs. The second
    channel is zero, where the slope of the normalisation is largest. It feeds the queries or keys, see ``moving``.
    The others are unit vectors too: keys from the first channel, queries from a bias.
    """
    size, stripe = ((1, 2), None) if branches == 1 else ((2, 2), 1)
    similarity = Similarity(3.0, "qkv", epsilon=0.25, gain=gain)
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
@pytest.mark.parametrize(("heads", "branches", "gain"), [(1, 1, 0.7), (2, 1, 0.7), (2, 2, 0.7), (2, 2, -0.7)])
def test_queries_and_keys_reach_the_tight_bound(moving, heads, branches, gain):
    """With N = 2, for one head, for several and for both branches. So any smaller bound is wrong."""
    attention, x = attained(moving, heads, branches, gain)
    report = models.lipschitz_bound(attention, tuple(x.shape))
    measured = stretch(attention, x).item()
    assert report.tight == pytest.approx(3.0 * 0.7 * 2 * math.sqrt(heads), rel=1e-4)
    assert 0.999 * report.tight <= measured <= report.tight <= report.published


def test_values_reach_the_tight_bound_which_does_not_depend_on_the_position_bias():
    """With a bias that makes all tokens attend to one token, ‖P‖₂ = √N."""
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


def test_heads_are_bounded_by_their_own_matrices_if_that_bound_is_smaller():
    """A head without queries and keys adds only its values. The bound with whole matrices would be larger."""
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
