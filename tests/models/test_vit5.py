"""ViT-5 against its formulas, computed one token at a time, and its released names and sizes."""

import math

import pytest
import timm
import torch
from torch import Tensor

import models
from models.config import ViT5Config
from models.vit5 import Rotation
from tests.families import SMALL


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return weight * x / (x.pow(2).mean() + 1e-6).sqrt()


def rotated(x: Tensor, row: int, column: int, base: float) -> Tensor:
    """A head's query or key of a token: one half of the channels turns with the row, the other with the column."""
    half, turned = len(x) // 2, []
    for part, place in ((x[:half], row), (x[half:], column)):
        for pair in range(half // 2):
            angle = place * base ** (-2 * pair / half)
            a, b = part[2 * pair], part[2 * pair + 1]
            turned += [a * math.cos(angle) - b * math.sin(angle), a * math.sin(angle) + b * math.cos(angle)]
    return torch.stack(turned)


def literal_attention(attention, x: Tensor, places: list[tuple[int, int, float] | None]) -> Tensor:
    """Attention of one image ``(tokens, dim)``; ``places`` are row, column and base of each token."""
    heads, dim = attention.num_heads, attention.head_dim
    qkv = (x @ attention.qkv.weight.T).reshape(len(x), 3, heads, dim)
    outputs = []
    for head in range(heads):
        turned = []
        for i, norm in enumerate((attention.q_norm, attention.k_norm)):
            rows = [rms(qkv[token, i, head], norm.weight) for token in range(len(x))]
            turned.append([r if p is None else rotated(r, *p) for r, p in zip(rows, places, strict=True)])
        q, k = turned
        logits = torch.stack([torch.stack([a @ b for b in k]) for a in q]) / dim**0.5
        outputs.append(logits.softmax(1) @ qkv[:, 2, head])
    return torch.cat(outputs, dim=1) @ attention.proj.weight.T + attention.proj.bias


def literal(model, image: Tensor) -> Tensor:
    """The logits of one image."""
    rows, columns = model.patch_embed.grid_size
    patches = model.patch_embed(image[None])[0] + model.pos_embed[0]
    x = torch.cat([model.cls_token[0], patches, model.reg_token[0]])  # registers last, as in the released code
    places = [None, *((r, c, 10_000.0) for r in range(rows) for c in range(columns))]
    places += [(r, c, 100.0) for r in range(2) for c in range(2)]
    for block in model.blocks:
        normed = torch.stack([rms(row, block.norm1.weight) for row in x])
        x = x + block.ls1.gamma * literal_attention(block.attn, normed, places)
        x = x + block.ls2.gamma * block.mlp(torch.stack([rms(row, block.norm2.weight) for row in x]))
    return model.head(rms(x[0], model.norm.weight))


@pytest.fixture
def small():
    """A small model in float64 whose weights are all random, and large enough to matter."""
    torch.manual_seed(0)
    model = SMALL["vit5"].create(num_classes=5).eval().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def test_the_logits_are_those_of_the_formulas(small):
    image = torch.randn(3, 32, 32, dtype=torch.float64)
    # The norms compute in float32, as in the released code.
    assert torch.allclose(small(image[None])[0], literal(small, image), atol=1e-5)


@pytest.mark.parametrize(("name", "parameters"), [("vit5_small", 22_039_144), ("vit5_base", 86_543_080)])
def test_sizes_are_the_paper_s(name, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in timm.create_model(name).parameters()) == parameters


def test_the_class_token_and_the_registers_begin_as_in_the_released_code():
    """Truncated normal with 0.02; timm begins with 1e-6."""
    torch.manual_seed(0)
    model = timm.create_model("vit5_small", depth=1)
    for token in (model.cls_token, model.reg_token):
        assert token.std().item() == pytest.approx(0.02, rel=0.15)


def test_options_that_are_not_typed_are_those_of_the_paper():
    options = ViT5Config(name="vit5_small")
    assert (options.registers, options.layer_scale, options.mlp_ratio, options.patch_size) == (4, 1e-4, 4.0, 16)


def test_attention_sees_only_the_difference_of_places():
    turn = Rotation((5, 7), 4, 16)
    q, k = torch.randn(16), torch.randn(16)
    tokens = turn(torch.stack([q] * 40)[None, None])[0, 0][5:].view(5, 7, 16)
    others = turn(torch.stack([k] * 40)[None, None])[0, 0][5:].view(5, 7, 16)
    assert torch.allclose(tokens[1, 2] @ others[3, 5], tokens[0, 1] @ others[2, 4], atol=1e-5)
    assert not torch.allclose(tokens[1, 2] @ others[3, 5], tokens[0, 1] @ others[1, 4], atol=1e-3)
    whole = turn(torch.ones(1, 1, 40, 16))
    assert torch.equal(whole[0, 0, 0], torch.ones(16)), "the class token is not turned"


def test_another_image_size_counts_the_patches_anew(small):
    small.set_input_size((32, 64))
    assert small.blocks[1].attn.rotation.grid == (4, 8)
    assert small(torch.randn(2, 3, 32, 64, dtype=torch.float64)).shape == (2, 5)


def test_all_blocks_drop_paths_at_the_same_rate():
    model = SMALL["vit5"].create(drop_path_rate=0.3)
    assert {block.drop_path1.drop_prob for block in model.blocks} == {0.3}


@pytest.mark.parametrize("rate", ["drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"])
def test_every_dropout_rate_acts_in_training_only(rate):
    model, plain = (SMALL["vit5"].create(num_classes=5, **options) for options in ({rate: 0.5}, {}))
    x = torch.randn(2, 3, 32, 32)
    assert not torch.equal(model.train()(x), model(x))
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(x), plain.eval()(x))


def test_a_model_made_on_the_meta_device_turns_by_the_same_angles():
    with torch.device("meta"):
        model = SMALL["vit5"].create()
    model.to_empty(device="cpu").init_weights()
    made, built = model.blocks[0].attn.rotation, Rotation((4, 4), 4, 8)
    assert torch.equal(made.cos, built.cos) and torch.equal(made.sin, built.sin)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"registers": 3}, r"model\.registers=3 is no square number"), ({"embed_dim": 18}, "heads with a multiple of 4")],
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(models.ModelError, match=message):
        SMALL["vit5"].create(**options)
