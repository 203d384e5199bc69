"""Attention that collapses: found in the right layer, and said once."""

import math
from dataclasses import replace
from types import SimpleNamespace

import torch
from torch import nn

from engine.callbacks.instruments import Instruments
from engine.run import RunLength
from engine.run_dir import RunDirectory
from stability import StabilityReport, collapsed_heads
from tests.monitored import reading, small


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
    monitor = SimpleNamespace(before_update=lambda images: None, after_update=lambda: report)
    parts = (monitor, 1, RunDirectory(tmp_path), RunLength(9, 10, 90), callbacks)
    instruments = Instruments(*parts)  # type: ignore[arg-type]

    def take_down(step: int) -> None:
        with instruments.watch_update(step, torch.zeros(1)):
            pass

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
    monitor.after_update = lambda: replace(report, collapsed={})
    take_down(5)
    monitor.after_update = lambda: report
    take_down(6)
    assert caplog.text.count("collapses") == 1, "a head that recovers and collapses again"


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


def test_a_collapse_is_found_in_the_right_layer():
    model, images = small("vit_preln_small")
    assert reading(model, images).collapsed == {}
    collapse_(model, "blocks.1.attn")
    assert reading(model, images).collapsed == {"blocks.1.attn": [0, 1]}


def test_sparse_attention_of_full_rank_is_benign():
    low, high = torch.tensor([0.01, 0.01, 0.01, 0.9]), torch.tensor([0.99, 0.99, 0.5, 0.99])
    assert collapsed_heads(low, torch.tensor([0.05, 0.9, 0.05, 0.05]), high) == [0]


def test_a_head_has_collapsed_if_all_three_signs_are_beyond_their_thresholds():
    """The thresholds are those of docs/stability.md. Each of the last three heads misses one of them."""
    entropy, rank = torch.tensor([0.24, 0.26, 0.24, 0.24]), torch.tensor([0.09, 0.09, 0.11, 0.09])
    assert collapsed_heads(entropy, rank, torch.tensor([0.91, 0.91, 0.91, 0.89])) == [0]


def test_weights_that_are_nan_give_nan_and_no_collapse():
    model, images = small("vit_preln_small")
    with torch.no_grad():
        model.blocks[0].attn.qkv.weight.fill_(math.nan)
    report = reading(model, images)
    assert all(math.isnan(value) for kind in ("sec", "rank") for value in report.layers[kind]["blocks.0.attn"])
    assert report.collapsed == {}
