"""Entropy and rank of attention: correct values for every layer, and the model is not changed."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models  # noqa: F401  (registers the models)
from stability import attention_report
from tests.monitored import reading


class Attends(nn.Module):
    """Attention with given logits."""

    def __init__(self, logits: Tensor):
        super().__init__()
        self.logits = logits

    def forward(self, x: Tensor) -> Tensor:
        eye = torch.eye(self.logits.shape[-1]).expand(len(x), self.logits.shape[0], -1, -1)
        return F.scaled_dot_product_attention(self.logits.expand(len(x), -1, -1, -1), eye, eye, scale=1.0)


def test_entropy_and_rank_of_known_matrices_are_correct():
    sure = 50 * torch.eye(6)
    unsure = torch.zeros(6, 6)
    one_key = torch.zeros(6, 6)
    one_key[:, 2] = 50
    report = attention_report(Attends(torch.stack([sure, unsure, one_key])), torch.zeros(4, 1))[""]
    assert report.entropy.tolist() == pytest.approx([0, 1, 0], abs=1e-4)
    assert report.rank.tolist() == pytest.approx([1, 1 / 6, 1 / 6], abs=1e-4)
    fewer_queries = attention_report(Attends(50 * torch.eye(3, 7)[None]), torch.zeros(4, 1))[""]
    assert fewer_queries.rank.tolist() == pytest.approx([1], abs=1e-4)


def test_the_monitor_measures_rows_that_are_evenly_spaced():
    """Every third of 130 rows, because 64 are the most that it measures."""
    logits = torch.linspace(0.1, 5, 130)[:, None] * torch.randn(2, 130, 130)
    layers = reading(Attends(logits), torch.zeros(2, 1)).layers
    expected = attention_report(Attends(logits[:, ::3]), torch.zeros(2, 1))[""]
    assert layers["entropy"][""] == pytest.approx(expected.entropy.tolist(), rel=1e-5)
    assert layers["rank"][""] == pytest.approx(expected.rank.tolist(), rel=1e-4)


@pytest.mark.parametrize("softmax", [nn.Softmax(dim=-1), lambda x: x.softmax(-1), lambda x: torch.softmax(x, dim=3)])
def test_attention_with_an_explicit_softmax_gives_the_same_report(softmax):
    class Explicit(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            gates = x.flatten(1).softmax(dim=1)  # a softmax that is not attention
            return softmax(x @ x.mT * x.shape[-1] ** -0.5) @ x * gates.sum()

    class Fused(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x)

    x = torch.randn(3, 2, 7, 4)
    (a,), (b,) = (attention_report(model, x).values() for model in (Explicit(), Fused()))
    assert a.entropy.tolist() == pytest.approx(b.entropy.tolist(), rel=1e-5)
    assert a.rank.tolist() == pytest.approx(b.rank.tolist(), rel=1e-4)


@pytest.mark.parametrize("masked", ["causal", "bool", "bias"])
def test_masks_are_applied(masked):
    class Masked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            allowed = torch.ones(5, 5, dtype=torch.bool).tril()
            bias = torch.zeros(5, 5).masked_fill(~allowed, -torch.inf)
            options = {"causal": {"is_causal": True}, "bool": {"attn_mask": allowed}, "bias": {"attn_mask": bias}}
            return F.scaled_dot_product_attention(x, x, x, **options[masked])

    report = attention_report(Masked(), torch.zeros(2, 1, 5, 3))[""]
    expected = sum(torch.log(torch.tensor(float(n))) for n in range(1, 6)) / 5 / torch.log(torch.tensor(5.0))
    assert report.entropy.item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize(
    ("query", "key", "mask", "heads"),
    [
        ((6, 5, 4), (6, 7, 4), (6, 5, 7), 1),  # no heads, or heads in the batch
        ((2, 9, 3, 5, 4), (2, 9, 3, 7, 4), (9, 1, 5, 7), 3),  # windows of images
        ((2, 6, 5, 4), (2, 1, 7, 4), (2, 1, 5, 7), 6),  # keys that all heads share
        ((2, 6, 5, 4), (2, 2, 7, 4), (2, 1, 5, 7), 6),  # keys that three heads share
    ],
)
def test_every_shape_of_attention_is_measured(query, key, mask, heads):
    q, k, bias = (
        torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))) for shape in (query, key, mask)
    )

    class Shaped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            shares = 1 < key[-3] < query[-3]
            return F.scaled_dot_product_attention(q, k, k, attn_mask=bias, scale=0.3, enable_gqa=shares)

    report = attention_report(Shaped(), torch.zeros(1))[""]
    rows = (0.3 * q @ k.repeat_interleave(query[-3] // key[-3], dim=-3).mT + bias).softmax(dim=-1)
    entropies = (-(rows * rows.log()).sum(dim=-1) / torch.log(torch.tensor(7.0))).mean(dim=-1)
    assert torch.allclose(report.entropy, entropies.reshape(-1, heads).mean(dim=0), atol=1e-5)
    assert len(report.rank) == heads


@pytest.mark.parametrize(
    ("name", "layers", "heads"), [("lipsformer_swin_mini", 3, 2), ("deit_tiny_patch16_224", 12, 3)]
)
def test_every_attention_layer_of_a_model_has_a_report(name, layers, heads):
    model = timm.create_model(name, img_size=28 if "mini" in name else 32)
    side = 28 if "mini" in name else 32
    found = attention_report(model, torch.randn(2, 3, side, side))
    assert len(found) == layers
    modules = dict(model.named_modules())
    assert all(layer in modules and "attn" in layer for layer in found)
    first = next(iter(found.values()))
    assert first.entropy.shape == first.rank.shape == (heads,)
    assert all(((0 <= r.entropy) & (r.entropy <= 1)).all() and (r.rank > 0).all() for r in found.values())


def test_the_model_and_the_random_state_do_not_change():
    model = timm.create_model("lipsformer_swin_mini", drop_path_rate=0.3).train()
    model.norm.eval()
    twin = copy.deepcopy(model)
    images = torch.randn(2, 3, 28, 28)
    state = torch.get_rng_state()
    attention_report(model, images)
    assert torch.equal(state, torch.get_rng_state())
    assert [m.training for m in model.modules()] == [m.training for m in twin.modules()]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    torch.manual_seed(1)
    after = model(images)
    torch.manual_seed(1)
    assert torch.equal(after, twin(images)) and after.requires_grad
