"""The stability monitor: its values are correct, and a run with it has the same weights."""

import math
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import timm
import torch
from torch import Tensor, nn

import models  # noqa: F401  (registers the models)
from engine.callbacks.instruments import Instruments
from engine.run_dir import RunDirectory
from engine.run_length import RunLength
from optim import AdamW2, OptimError, param_groups, spectral_norms
from stability import (
    StabilityMonitor,
    StabilityReport,
    attention_report,
    block_report,
    collapsed_heads,
    token_diversity,
)
from stability.blocks import find_blocks
from stability.layers import norm_gains, query_keys, residual_scales, weight_matrices
from tests.runs import (
    ALL_AUGMENTATION,
    NO_LOCAL_NOISE,
    SMALL,
    checkpoint,
    losses,
    metrics,
    run,
    same_tensors,
    train_here,
)

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
LIPSFORMER = {"img_size": 28, "depths": (1, 1), "embed_dim": 12, "num_heads": (1, 2)}


def small(name: str) -> tuple[nn.Module, Tensor]:
    """A small model and a batch for it."""
    options = LIPSFORMER if "lipsformer" in name else SIZES
    return timm.create_model(name, num_classes=5, **options), torch.randn(
        6, 3, options["img_size"], options["img_size"]
    )


def read(name: str = "vit_preln_small", build: Callable = torch.optim.AdamW):
    """A model, its weights before a step, its gradients, the batch, the reading of the step and the optimizer."""
    model, images = small(name)
    optimizer = build(param_groups(model), lr=1e-2)
    monitor = StabilityMonitor(model, lambda: spectral_norms(optimizer), most_images=4)
    nn.functional.cross_entropy(model(images), torch.arange(6) % 5).backward()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    monitor.before_update(images)
    optimizer.step()
    optimizer.zero_grad()
    monitor.after_update()
    return model, before, gradients, images, monitor.report, optimizer


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
        monitor.after_update()
        report = monitor.report
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


def test_sec_is_computed_for_each_head():
    model, *_, report, _ = read()
    for name in ("blocks.0.attn", "blocks.1.attn"):
        weight = model.get_submodule(name).qkv.weight.detach()
        for head, value in enumerate(report.layers["sec"][name]):
            first = 12 * head
            product = weight[first : first + 12].T @ weight[24 + first : 24 + first + 12]
            energies = torch.linalg.svdvals(product).square()
            assert value == pytest.approx((energies[:2].sum() / energies.sum()).item(), rel=1e-4)  # 10 of 64: 2 of 12


def test_layers_are_in_the_models_order():
    *_, report, _ = read()
    owners = [
        layer.rpartition(".")[0] if layer.endswith((".q", ".k", ".v")) else layer for layer in report.layers["sigma"]
    ]
    order = list(report.layers["gradient"])
    assert [order.index(owner) for owner in owners] == sorted(order.index(owner) for owner in owners)


def test_a_reading_is_summarised_by_its_worst_layers_and_warns_once(tmp_path, caplog):
    layers = {
        "diversity": {"a": [0.9], "b": [0.2], "c": [math.nan]},
        "entropy": {"a": [0.9, 0.1], "b": [0.8, 0.7]},
        "rank": {"a": [0.9, 0.05], "b": [0.8, 0.7]},
        "sec": {"a": [0.3, 0.95], "b": [0.5, 0.4]},
    }
    report = StabilityReport(layers, {"a": [1]}, seconds=0.1)
    told: list[dict] = []
    callbacks = SimpleNamespace(on_line=told.append)
    instruments = Instruments(None, 1, RunDirectory(tmp_path), RunLength(9, 10, 90), callbacks)  # type: ignore[arg-type]

    def take_down(step: int) -> None:
        instruments.report = report
        instruments.after_step(SimpleNamespace(step=step))  # type: ignore[arg-type]

    take_down(3)
    line, of_layers = told
    assert (line["diversity_min"], line["diversity_min_of"], line["collapsed"]) == (0.2, "b", 1)
    assert (line["entropy_min"], line["entropy_min_of"], line["sec_max"], line["sec_max_of"]) == (0.1, "a", 0.95, "a")
    assert of_layers["entropy/a"] == 0.1 and of_layers["sec/b"] == 0.5
    assert (line["split"], line["step"], line["epoch"]) == ("stability", 3, 0.3)
    assert "step 3: attention collapses in a, head 1 (entropy 0.10, rank 0.05" in caplog.text
    take_down(4)
    assert caplog.text.count("collapses") == 1
    assert [reading["layers"]["diversity"]["c"] for reading in instruments.directory.read_stability()] == [
        [None],
        [None],
    ]


def collapse_(model: nn.Module, layer: str) -> None:
    """Make every query of a layer attend to the key with the largest first channel."""
    attention = model.get_submodule(layer)
    dim = attention.qkv.weight.shape[1]
    rows = torch.zeros(3 * dim, dim)
    bias = torch.zeros(3 * dim)
    for head in range(attention.num_heads):
        first = head * attention.head_dim
        bias[first] = 100.0
        rows[first, 0] = rows[dim + first, 0] = 10.0
    with torch.no_grad():
        attention.qkv.weight.copy_(rows)
        attention.qkv.bias.copy_(bias)


def reading(model: nn.Module, images: Tensor) -> StabilityReport:
    monitor = StabilityMonitor(model, dict)
    monitor.before_update(images)
    monitor.after_update()
    return monitor.report


def test_a_collapse_is_found_in_the_right_layer():
    model, images = small("vit_preln_small")
    assert reading(model, images).collapsed == {}
    collapse_(model, "blocks.1.attn")
    assert reading(model, images).collapsed == {"blocks.1.attn": [0, 1]}


def test_sparse_attention_of_full_rank_is_benign():
    low, high = torch.tensor([0.01, 0.01, 0.01, 0.9]), torch.tensor([0.99, 0.99, 0.5, 0.99])
    assert collapsed_heads(low, torch.tensor([0.05, 0.9, 0.05, 0.05]), high) == [0]


def test_weights_that_are_nan_give_nan_and_no_collapse():
    model, images = small("vit_preln_small")
    with torch.no_grad():
        model.blocks[0].attn.qkv.weight.fill_(math.nan)
    report = reading(model, images)
    assert all(math.isnan(value) for kind in ("sec", "rank") for value in report.layers[kind]["blocks.0.attn"])
    assert report.collapsed == {}


def test_spectral_norms_do_not_change_the_optimizer():
    *_, optimizer = read(build=AdamW2)
    before = [v.clone() for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
    spectral_norms(optimizer)
    after = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("named", [False, True])
def test_spectral_norms_need_our_param_groups(named):
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(layer.named_parameters() if named else layer.parameters(), lr=0.1)
    with pytest.raises(OptimError, match="param_groups"):
        spectral_norms(optimizer)


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_a_run_is_the_same_with_and_without_the_monitor(small_images, here, precision):
    """Including drop path, random erasing, mixup and cutmix, the moving average and AdamW²'s vectors."""
    common = (*SMALL, *ALL_AUGMENTATION, f"data.root={small_images}", "optim=adamw2", f"amp={precision}", "epochs=1")
    train_here(*common, "name=off", "monitor.every=0", "monitor.history=0")
    train_here(*common, "name=on", "monitor.every=1")
    off, on = checkpoint(here / "outputs/off"), checkpoint(here / "outputs/on")
    assert same_tensors(off["model"], on["model"]) and same_tensors(off["ema"], on["ema"])
    for number, state in off["stepper"]["optimizer"]["state"].items():
        other = on["stepper"]["optimizer"]["state"][number]
        assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(other[k])) for k, v in state.items())
    assert losses(here / "outputs/off") == losses(here / "outputs/on")
    assert [line["step"] for line in metrics(here / "outputs/on", "stability")] == list(range(1, 11))
    assert not (here / "outputs/off/stability.jsonl").read_text()


@pytest.mark.slow
def test_the_losses_of_two_processes_do_not_depend_on_the_monitor(small_images, here):
    common = (*SMALL, *NO_LOCAL_NOISE, f"data.root={small_images}", "max_steps=4")
    for name, every in (("off", 0), ("on", 2)):
        out = run("train.py", *common, f"name={name}", f"monitor.every={every}", cwd=here, processes=2)
        assert out.returncode == 0, out.stderr
    assert losses(here / "outputs/off") == losses(here / "outputs/on")
    assert [line["step"] for line in metrics(here / "outputs/on", "stability")] == [2, 4]
