"""The stability monitor: its values are correct."""

import weakref

import pytest
import timm
import torch
from torch import nn

import models  # noqa: F401  (registers the models)
from optim import AdamW2
from stability import StabilityMonitor, attention_report, block_report, token_diversity
from stability.blocks import find_blocks
from stability.layers import norm_gains, query_keys, residual_scales, weight_matrices
from tests.monitored import SIZES, read, reading


@pytest.mark.parametrize("build", [torch.optim.AdamW, AdamW2])
@pytest.mark.parametrize("name", ["vit_preln_small", "lipsformer_swin_mini"])
def test_singular_values_gradients_and_updates_are_correct(name, build):
    model, before, gradients, _, report, _ = read(name, build)
    after = dict(model.named_parameters())
    sigma = report.layers["sigma"]
    for layer, (value,) in sigma.items():
        owner, part = layer, slice(None)
        if layer.endswith((".q", ".k", ".v")):
            owner = layer[:-2]
            rows = len(after[f"{owner}.weight"]) // 3
            part = slice(rows * "qkv".index(layer[-1]), rows * ("qkv".index(layer[-1]) + 1))
        exact = torch.linalg.matrix_norm(after[f"{owner}.weight"].detach()[part].flatten(1), 2).item()
        assert value == pytest.approx(exact, rel=5e-3)
    assert sum(layer.endswith("qkv.q") for layer in sigma) == 2
    named = {key.removesuffix(".weight"): key for key in before if before[key].ndim >= 2}
    assert report.layers["gradient"].keys() == report.layers["update"].keys() == named.keys()
    for layer, key in named.items():
        assert report.layers["gradient"][layer][0] == pytest.approx(gradients[key].norm().item(), rel=1e-5)
        moved = (after[key] - before[key]).norm() / before[key].norm()
        assert report.layers["update"][layer][0] == pytest.approx(moved.item(), rel=1e-4)


def test_heads_are_counted_once():
    """Even if a part of the attention, such as its position bias, has the attribute ``num_heads`` too."""
    model = timm.create_model("vit_relpos_small_patch16_224", class_token=False, **SIZES)
    images = torch.randn(2, 3, 32, 32)
    assert {key: pair.heads for key, pair in query_keys(model).items()} == {"blocks.0.attn": 2, "blocks.1.attn": 2}
    report = reading(model, images)
    assert all(len(v) == 2 for kind in ("entropy", "rank", "sec") for v in report.layers[kind].values())


def test_a_reading_that_fails_keeps_no_copies_of_the_weights():
    """On a GPU without memory for a reading, they would leave less of it to the training."""
    model = timm.create_model("vit_preln_small", **SIZES)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    monitor = StabilityMonitor(model, dict)
    for failing in ({"precision": None}, {"spectral_norms": None}):  # in the forward pass, and after it
        vars(monitor).update(failing)
        monitor.before_update(torch.randn(2, 3, 32, 32))
        copies = weakref.ref(monitor.kept.before[0])
        with pytest.raises(TypeError):
            monitor.after_update()
        assert copies() is None


@pytest.mark.parametrize("name", ["tiny_vit_5m_224", "efficientformer_l1", "maxvit_rmlp_pico_rw_256"])
def test_a_qkv_whose_rows_are_ordered_by_head_is_left_out(name):
    assert query_keys(timm.create_model(name)) == {}


@pytest.mark.parametrize("name", ["vit_preln_small", "lipsformer_swin_mini", "lipsformer_cswin_tiny"])
def test_activations_diversity_and_attention_are_read_for_every_block(name):
    if name == "lipsformer_cswin_tiny":
        model = timm.create_model(name, img_size=224, num_classes=5)
        images = torch.randn(1, 3, 224, 224)
        monitor = StabilityMonitor(model, dict)
        monitor.before_update(images)
        report = monitor.after_update()
    else:
        model, _, _, images, report, _ = read(name)
        images = images[:4]
    model.eval()
    outputs = {}
    blocks = find_blocks(model)
    for key, block in blocks.items():
        block.register_forward_hook(lambda m, i, o, key=key: outputs.__setitem__(key, o.detach()))
    with torch.no_grad():
        model(images)
    assert report.layers["activation"].keys() == report.layers["diversity"].keys() == blocks.keys()
    for key, output in outputs.items():
        patches = output[:, 1:] if output.ndim == 3 else output
        assert report.layers["activation"][key][0] == pytest.approx(patches.square().mean().sqrt().item(), rel=1e-4)
    # One entry for each layer with queries and keys, one value for each of its heads.
    heads = {key: pair.heads for key, pair in query_keys(model).items()}
    assert len(heads) == len(blocks)
    for kind in ("entropy", "rank", "sec"):
        assert {key: len(values) for key, values in report.layers[kind].items()} == heads
        assert all(0 <= value <= 1 + 1e-6 for values in report.layers[kind].values() for value in values)


def test_register_tokens_are_left_out_as_the_class_token_is():
    model, outputs = timm.create_model("vit_small_patch16_224", reg_tokens=4, **SIZES).eval(), {}
    model.blocks[1].register_forward_hook(lambda m, i, o: outputs.update(last=o))
    report = block_report(model, torch.randn(2, 3, 32, 32))["blocks.1"]
    patches = outputs["last"].detach()[:, 5:]
    assert patches.shape[1] == 16
    assert report.scale.item() == pytest.approx(patches.square().mean().sqrt().item(), rel=1e-6)
    assert report.diversity.item() == pytest.approx(token_diversity(patches).mean().item(), rel=1e-6)


def test_entropy_and_rank_equal_those_of_the_attention_report():
    model, _, _, images, report, _ = read()
    whole = attention_report(model, images[:4:2])  # the monitor measures two of its four images, evenly spaced
    for layer, found in whole.items():
        assert report.layers["entropy"][layer] == pytest.approx(found.entropy.tolist(), rel=1e-4)
        assert report.layers["rank"][layer] == pytest.approx(found.rank.tolist(), rel=1e-3)


def test_gains_and_residual_scales_are_read():
    model, *_, report, _ = read("lipsformer_swin_mini")
    gains = norm_gains(model)
    assert report.layers["gain"].keys() == gains.keys() and len(gains) == 7
    for name, gain in gains.items():
        assert report.layers["gain"][name][0] == pytest.approx(gain.detach().square().mean().sqrt().item(), rel=1e-6)
    scales = residual_scales(model)
    assert report.layers["alpha"].keys() == scales.keys() and len(scales) == 8
    for name, scale in scales.items():
        assert report.layers["alpha"][name][0] == pytest.approx(scale.detach().square().mean().sqrt().item(), rel=1e-6)
    layer_scale = timm.create_model("cait_xxs24_224")
    assert len(residual_scales(layer_scale)) == 2 * 24 + 2 * 2


def test_attention_by_an_explicit_softmax_is_read_too():
    """timm's Swin uses one. Every layer has as many values as heads of queries and keys."""
    model = timm.create_model("swin_tiny_patch4_window7_224", img_size=56, window_size=7, num_classes=5)
    layers = reading(model, torch.randn(2, 3, 56, 56)).layers
    heads = {name: pair.heads for name, pair in query_keys(model).items()}
    assert len(heads) == 12
    for kind in ("entropy", "rank", "sec"):
        assert {name: len(values) for name, values in layers[kind].items()} == heads


def test_convolutional_networks_are_read_too():
    model = timm.create_model("resnet18", num_classes=5)
    reports = block_report(model.eval(), torch.randn(2, 3, 64, 64))
    assert list(reports) == [f"layer{i}.{j}" for i in range(1, 5) for j in range(2)]
    assert all(0 <= report.diversity.item() <= 1 for report in reports.values() if report.diversity is not None)
    assert query_keys(model) == {} and len(weight_matrices(model)) == 21


def test_diversity_is_correct_for_a_map_with_channels_first():
    model = timm.create_model("resnet18", num_classes=5).eval()
    images, outputs = torch.randn(2, 3, 64, 64), {}
    model.layer1[0].register_forward_hook(lambda m, i, o: outputs.update(first=o))
    report = block_report(model, images)["layer1.0"]
    tokens = outputs["first"].detach().permute(0, 2, 3, 1).reshape(2, 16 * 16, 64)
    assert report.diversity.item() == pytest.approx(token_diversity(tokens).mean().item(), rel=1e-5)


class MapBlock(nn.Module):
    """A block of a convolutional network whose maps are as wide as they have channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x):
        return self.conv(x)


def test_a_model_that_names_the_layout_of_its_maps_is_read_so():
    model, images = nn.Sequential(MapBlock()), torch.randn(2, 6, 6, 6)
    maps = model(images).detach()
    for layout, tokens in (("NCHW", maps.flatten(2).mT), ("NHWC", maps.flatten(1, 2))):
        model.output_fmt = layout
        diversity = block_report(model, images)["0"].diversity.item()
        assert diversity == pytest.approx(token_diversity(tokens).mean().item(), rel=1e-5), layout


def test_sec_is_computed_for_each_head():
    model, *_, report, _ = read()
    for name in ("blocks.0.attn", "blocks.1.attn"):
        weight = model.get_submodule(name).qkv.weight.detach()
        for head, value in enumerate(report.layers["sec"][name]):
            first = 12 * head
            product = weight[first : first + 12].T @ weight[24 + first : 24 + first + 12]
            energies = torch.linalg.svdvals(product).square()
            assert value == pytest.approx((energies[:2].sum() / energies.sum()).item(), rel=1e-4)  # 10 of 64: 2 of 12


@pytest.mark.parametrize(
    ("name", "options", "layer", "parts"),
    [
        ("eva02_base_patch14_224", {"embed_dim": 24, "num_heads": 2}, "blocks.0.attn", ("q_proj", "k_proj")),
        ("cait_xxs24_224", {"patch_size": 14}, "blocks_token_only.0.attn", ("q", "k")),
    ],
)
def test_queries_and_keys_of_two_layers_are_read_too(name, options, layer, parts):
    model = timm.create_model(name, img_size=28, depth=1, num_classes=5, **options)
    attention, pair = model.get_submodule(layer), query_keys(model)[layer]
    for found, part in zip((pair.query, pair.key), parts, strict=True):
        assert torch.equal(found, attention.get_submodule(part).weight)
    assert pair.heads == attention.num_heads
    layers = reading(model, torch.randn(2, 3, 28, 28)).layers
    assert all(len(layers[kind][layer]) == pair.heads for kind in ("entropy", "rank", "sec"))


def test_layers_are_in_the_models_order():
    *_, report, _ = read()
    owners = [
        layer.rpartition(".")[0] if layer.endswith((".q", ".k", ".v")) else layer for layer in report.layers["sigma"]
    ]
    order = list(report.layers["gradient"])
    assert [order.index(owner) for owner in owners] == sorted(order.index(owner) for owner in owners)
