"""Convolutional stems: their layers, their formula, and timm's interface."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from engine.measuring.flops import forward_flops
from models.stems import STEMS
from tests.training import losses_on_noise

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}


def small(stem: str, **changes) -> nn.Module:
    return timm.create_model("deit_small", stem=stem, stem_width=8, **(SMALL | changes))


def kinds(stem: str) -> list[str]:
    layers = small(stem).patch_embed.proj
    return [type(layer).__name__ for layer in (layers if isinstance(layers, nn.Sequential) else [layers])]


def test_the_five_stems_have_the_expected_layers():
    conv, norm, relu = "Conv2d", "BatchNorm2d", "ReLU"
    expected = {
        "patchify": [conv],
        "conv": [conv] * 4,
        "conv_bn": [conv, norm] * 3 + [conv],
        "conv_relu": [conv, relu] * 3 + [conv],
        "scaled_relu": [conv, norm, relu] * 3 + [conv],
    }
    assert {stem: kinds(stem) for stem in STEMS} == expected


def test_a_model_whose_embedding_has_no_bias_has_none_in_its_stem():
    for stem in STEMS:
        embed = small(stem, pre_norm=True).patch_embed
        assert all(layer.bias is None for layer in embed.modules() if isinstance(layer, nn.Conv2d)), stem


def test_the_scaled_relu_stem_adds_the_published_parameters_and_macs_to_deit_small():
    with torch.device("meta"):
        plain, stemmed = timm.create_model("deit_small"), timm.create_model("deit_small_convstem")
    added = sum(p.numel() for p in stemmed.parameters()) - sum(p.numel() for p in plain.parameters())
    assert added / 1e6 == pytest.approx(1.36, abs=0.005)
    assert (forward_flops(stemmed, 224) - forward_flops(plain, 224)) / 2e9 == pytest.approx(1.29, abs=0.005)


def test_scaled_relu_equals_its_formula():
    embed = small("scaled_relu").double().patch_embed
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    c1, n1, _, c2, n2, _, c3, n3, _, project = embed.proj
    y = x
    for conv, norm, stride, padding in ((c1, n1, 2, 3), (c2, n2, 1, 1), (c3, n3, 1, 1)):
        assert conv.bias is None
        y = F.conv2d(y, conv.weight, stride=stride, padding=padding)
        mean, variance = y.mean((0, 2, 3), keepdim=True), y.var((0, 2, 3), keepdim=True, unbiased=False)
        y = F.relu((y - mean) / (variance + norm.eps).sqrt())
    y = F.conv2d(y, project.weight, project.bias, stride=4)
    torch.testing.assert_close(embed(x), y.flatten(2).mT)


@pytest.mark.parametrize("stem", STEMS)
def test_timms_patch_embedding_interface_works(stem):
    model = small(stem, img_size=(32, 48)).eval()
    assert model.patch_embed.num_patches == 24 and model.patch_embed.feat_ratio() == 8
    assert model(torch.randn(1, 3, 32, 48)).shape == (1, 5)
    model.set_input_size(img_size=(48, 48))
    assert model(torch.randn(1, 3, 48, 48)).shape == (1, 5)
    flexible = small(stem, dynamic_img_size=True).eval()
    assert flexible(torch.randn(1, 3, 48, 64)).shape == (1, 5)


@pytest.mark.parametrize("amp", ["fp32", "bf16"])
@pytest.mark.parametrize("stem", STEMS)
def test_the_loss_falls_in_twenty_steps(stem, amp):
    losses = losses_on_noise(lambda: small(stem), amp)
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("stem", ["conv", "scaled_relu"])
def test_it_compiles_as_one_graph(stem):
    torch._dynamo.reset()
    model = small(stem)
    x = torch.randn(4, 3, 32, 32)
    expected = model(x)
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-5)
    compiled(x).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
