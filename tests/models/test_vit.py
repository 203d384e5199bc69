"""Vision transformers: the same parameters as timm's, Post-LN by its formula, and options that are refused."""

import dataclasses
import inspect
import itertools
import math
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import models
from engine.options.config import register
from models.config import ViTConfig
from models.vit import ViT
from tests.runs import PROJECT

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
PARAMETERS = {
    "deit_tiny": 5_717_416,
    "deit_small": 22_050_664,
    "deit_base": 86_567_656,
    "vit_preln_small": 22_050_664,
    "vit_postln_small": 22_050_664 - 2 * 384,  # no final norm
    "deit_small_convstem": 22_050_664 + 1_361_472,
}
OTHERS = {
    "deit3_small": 22_050_664 + 23 * 384,  # 24 LayerScales, and no position of the class token
    "vit_small_sincos": 22_050_664 - 198 * 384,  # no position, no class token
}
DEIT = (*PARAMETERS, "vit_preln_theory", "vit_postln_theory")
NAMES = (*DEIT, *OTHERS)


def small(name: str = "deit_small", **changes) -> nn.Module:
    return timm.create_model(name, **(SMALL | changes))


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in model.state_dict().items()}


@pytest.mark.parametrize("name", (*PARAMETERS, *OTHERS))
def test_the_number_of_parameters_is_exact(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == (PARAMETERS | OTHERS)[name]


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_deit_has_the_parameter_names_and_shapes_of_timm(size):
    with torch.device("meta"):
        assert shapes(timm.create_model(f"deit_{size}")) == shapes(timm.create_model(f"deit_{size}_patch16_224"))


def test_weights_of_timms_deit_give_the_same_logits():
    theirs = timm.create_model("deit_small_patch16_224", **SMALL).eval()
    ours = small().eval()
    models.load_weights(ours, theirs.state_dict(), "timm's")
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("name", NAMES)
def test_config_file_and_registry_build_the_same_model(name):
    content = OmegaConf.load(PROJECT / "conf/model" / f"{name}.yaml")
    options = OmegaConf.merge(ViTConfig, {k: v for k, v in content.items() if k != "defaults"})
    with torch.device("meta"):
        built = models.build_model(OmegaConf.to_object(options), 1000, 224)
        registered = timm.create_model(name)
    assert str(built) == str(registered) and shapes(built) == shapes(registered)


@pytest.mark.parametrize("path", sorted(Path("conf/model").glob("swin_*.yaml")), ids=lambda path: path.stem)
def test_swin_of_timm_is_built_for_the_crop_size(path):
    register()
    with initialize_config_dir(str(PROJECT / "conf"), version_base="1.3"):
        cfg = compose("train", overrides=[f"model={path.stem}", "data=fashion_mnist", "logger=none"])
    with torch.device("meta"):
        model = models.build_model(OmegaConf.to_object(cfg.model), 7, cfg.data.crop)
        assert model(torch.empty(2, 3, 28, 28)).shape == (2, 7)
    assert cfg.schedule.warmup_epochs == 0 and cfg.model.drop_path_rate > 0


@pytest.fixture(scope="module")
def paper():
    """The settings of the paper."""
    register()
    with initialize_config_dir(str(PROJECT / "conf"), version_base="1.3"):
        return compose("train", overrides=["experiment=deit_small_paper"])


@pytest.mark.parametrize("name", DEIT)
def test_recipes_have_no_warm_up_and_the_paper_has(name, paper):
    register()
    with initialize_config_dir(str(PROJECT / "conf"), version_base="1.3"):
        recipe = compose("train", overrides=[f"model={name}"])
    assert recipe.schedule.warmup_epochs == 0
    assert (paper.schedule.warmup_epochs, paper.schedule.warmup_lr) == (5, 1e-6)
    assert recipe.optim == paper.optim and recipe.batch_size == paper.batch_size == 1024


def test_every_option_is_an_argument_of_the_model():
    known = inspect.signature(ViT).parameters | inspect.signature(VisionTransformer).parameters
    fields = {field.name for field in dataclasses.fields(ViTConfig)}
    assert fields - {"name", "grad_checkpointing"} <= set(known)


@pytest.mark.parametrize("stabilizer", ["none", "layer_scale"])
def test_a_post_norm_block_equals_its_formula(stabilizer):
    model = small("vit_postln_small", depth=1, stabilizer=stabilizer).double().eval()
    block, scales = model.blocks[0], torch.ones(2, 32, dtype=torch.float64)
    if stabilizer == "layer_scale":
        scales = torch.randn(2, 32, dtype=torch.float64)
        block.ls1.gamma.data, block.ls2.gamma.data = scales
    x = torch.randn(2, 17, 32, dtype=torch.float64)
    with torch.no_grad():
        q, k, v = block.attn.qkv(x).view(2, 17, 3, 2, 16).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.mT / 4).softmax(-1) @ v
        y = x + scales[0] * block.attn.proj(mixed.transpose(1, 2).reshape(2, 17, 32))
        y = F.layer_norm(y, (32,), block.norm1.weight, block.norm1.bias, block.norm1.eps)
        y = y + scales[1] * block.mlp.fc2(F.gelu(block.mlp.fc1(y)))
        y = F.layer_norm(y, (32,), block.norm2.weight, block.norm2.bias, block.norm2.eps)
        torch.testing.assert_close(model.blocks(x), y)
    assert isinstance(model.norm, nn.Identity) and isinstance(model.fc_norm, nn.Identity)


def test_drop_path_and_relu_apply_to_pre_and_post_norm_blocks():
    for position in ("pre", "post"):
        model = small(norm_position=position, activation="relu", depth=3, drop_path_rate=0.2)
        assert [getattr(b.drop_path2, "drop_prob", 0.0) for b in model.blocks] == pytest.approx([0, 0.1, 0.2])
        assert all(isinstance(block.mlp.act, nn.ReLU) for block in model.blocks)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_position": "mid"}, "model.norm_position=mid is unknown: choose pre, post"),
        ({"stem": "cnn"}, "model.stem=cnn is unknown: choose patchify, conv, conv_bn, conv_relu, scaled_relu"),
        ({"stabilizer": "x"}, "model.stabilizer=x is unknown: choose none, layer_scale, qk_norm, sigma_reparam"),
        ({"activation": "tanh"}, "model.activation=tanh is unknown: choose gelu, gelu_tanh, relu"),
        ({"init": "zero"}, "model.init=zero is unknown: choose timm, deit, jax, theory"),
        ({"img_size": 30}, "image size 30 does not fit: .*=8 it must be a multiple of 8, such as 24 or 32; or .*"),
        ({"num_heads": 5}, "model.num_heads=5 does not divide model.embed_dim=32: change one of them"),
        ({"patch_size": 0}, "model.patch_size=0 must be 1 or more"),
        ({"depth": 0}, "model.depth=0 must be 1 or more"),
        ({"mlp_ratio": 0.0}, "model.mlp_ratio=0 gives no valid hidden width for 32 channels: set a number such as 4"),
        ({"stem": "conv", "stem_width": 0}, "model.stem_width=0 must be 1 or more"),
        ({"stem": "conv", "patch_size": 1}, ".* model.patch_size must be even, such as 2"),
    ],
)
def test_impossible_options_are_refused_in_one_line(changes, message):
    with pytest.raises(models.ModelError) as error:
        small(**changes)
    assert "\n" not in str(error.value)
    error.match(f"^{message}$")


@pytest.mark.parametrize("options", [{}, {"stem": "scaled_relu"}, {"stabilizer": "sigma_reparam"}], ids=str)
def test_patches_can_be_rectangular(options):
    model = small(patch_size=(8, 16), img_size=(24, 48), **options)
    assert model.patch_embed.grid_size == (3, 3) and model(torch.randn(1, 3, 24, 48)).shape == (1, 5)
    with pytest.raises(models.ModelError, match=r"image size 24 does not fit: with model.patch_size=16"):
        small(patch_size=(8, 16), img_size=24, **options)


def test_an_image_of_another_size_is_refused():
    with pytest.raises(models.ModelError, match=r"takes images of \(32, 32\) pixels and got \(24, 24\)"):
        small()(torch.randn(1, 3, 24, 24))


@pytest.mark.parametrize("stabilizer", ["none", "sigma_reparam"])
def test_timms_methods_work(stabilizer):
    model = small(stabilizer=stabilizer)
    x = torch.randn(2, 3, 32, 32)
    features = model.forward_features(x)
    assert features.shape == (2, 17, model.num_features)
    torch.testing.assert_close(model(x), model.forward_head(features), rtol=1e-3, atol=1e-3)
    assert model.default_cfg["classifier"] == "head" and model.get_classifier() is model.head
    kind = type(model.head)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3) and type(model.head).__name__ == kind.__name__
    model.reset_classifier(0)
    assert model(x).shape == (2, model.num_features)
    assert {"pos_embed", "cls_token"} <= model.no_weight_decay()


@pytest.mark.parametrize("stem", ["patchify", "scaled_relu"])
def test_input_size_pool_and_precision_can_be_set(stem):
    model = small(stem=stem, stem_width=8, dtype=torch.bfloat16, attn_drop_rate=0.1, drop_rate=0.1).eval()
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    model.set_input_size(48)
    assert model(torch.randn(1, 3, 48, 48).bfloat16()).shape == (1, 5)
    with pytest.raises(models.ModelError, match="image size 30 does not fit"):
        model.set_input_size(30)
    if stem != "patchify":
        with pytest.raises(models.ModelError, match="a convolutional stem keeps its patch size"):
            model.set_input_size(patch_size=4)
    refusal = "^model.global_pool=median is unknown: choose token, avg, max, avgmax, map, prr, ''$"
    for refused in (lambda: small(global_pool="median"), lambda: model.reset_classifier(3, "median")):
        with pytest.raises(models.ModelError, match=refusal):
            refused()
    assert model.num_classes == 5


def literal_sincos_logits(model: ViT, image: torch.Tensor) -> torch.Tensor:
    """The logits of one image by the formulas of big_vision's ViT (Beyer et al., 2022), one token at a time."""
    rows, columns = model.patch_embed.grid_size
    tokens, quarter = model.patch_embed(image[None])[0], model.embed_dim // 4
    for place, (row, column) in enumerate(itertools.product(range(rows), range(columns))):
        angles = [[at * 10_000 ** -(i / (quarter - 1)) for i in range(quarter)] for at in (column, row)]
        table = [f(angle) for half in angles for f in (math.sin, math.cos) for angle in half]
        tokens[place] = tokens[place] + torch.tensor(table, dtype=torch.float32)

    def norm(layer: nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(1, keepdim=True)
        return centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt() * layer.weight + layer.bias

    for block in model.blocks:
        q, k, v = block.attn.qkv(norm(block.norm1, tokens)).chunk(3, dim=1)
        heads = zip(*(part.chunk(block.attn.num_heads, dim=1) for part in (q, k, v)), strict=True)
        mixed = [(q @ k.T / q.shape[1] ** 0.5).softmax(1) @ v for q, k, v in heads]
        tokens = tokens + block.attn.proj(torch.cat(mixed, dim=1))
        hidden = block.mlp.fc1(norm(block.norm2, tokens))
        gelu = hidden / 2 * (1 + (math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)).tanh())
        tokens = tokens + block.mlp.fc2(gelu)
    return model.head(norm(model.norm, tokens).mean(0))


@torch.no_grad()
def test_the_vit_of_90_epochs_computes_the_formulas_of_its_paper():
    torch.manual_seed(0)
    model = small("vit_small_sincos").eval().double()
    for parameter in model.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    image = torch.randn(3, 32, 32, dtype=torch.float64)
    assert torch.allclose(model(image[None])[0], literal_sincos_logits(model, image), atol=1e-6)


def test_fixed_positions_are_computed_for_every_image_size_and_not_saved():
    model = small("vit_small_sincos")
    assert "pos_embed" not in model.state_dict() and not dict(model.named_parameters()).keys() & {"pos_embed"}
    larger = small("vit_small_sincos", img_size=64)
    larger.load_state_dict(model.state_dict())
    model.set_input_size(64)
    assert torch.equal(model.pos_embed, larger.pos_embed) and model.pos_embed.shape == (1, 64, 32)
    with torch.device("meta"):
        made = small("vit_small_sincos", img_size=64)
    made.to_empty(device="cpu").init_weights()
    assert torch.equal(made.pos_embed, larger.pos_embed)


def test_fixed_positions_are_for_one_image_size():
    with pytest.raises(models.ModelError, match="leave dynamic_img_size out"):
        small("vit_small_sincos", dynamic_img_size=True)


def test_the_class_token_has_no_fixed_position():
    model = small("deit_small", pos_embed="sincos2d")
    assert model.pos_embed.shape == (1, 16, 32) and model(torch.zeros(2, 3, 32, 32)).shape == (2, 5)


def test_googles_initialisation_begins_with_equal_logits():
    model = small("vit_small_sincos")
    assert not model.head.weight.any() and not model.blocks[0].attn.qkv.bias.any()
    attention, mlp = model.blocks[0].attn, model.blocks[0].mlp
    # Xavier's bounds; queries, keys and values are three matrices.
    for weight, bound in ((mlp.fc1.weight, (6 / (32 + 128)) ** 0.5), (attention.qkv.weight, (6 / (32 + 32)) ** 0.5)):
        assert 0.9 * bound < weight.abs().max().item() <= bound


def test_weights_of_timms_deit_iii_give_the_same_logits():
    theirs = timm.create_model("deit3_small_patch16_224", **SMALL, init_values=1e-4).eval()
    ours = small("deit3_small").eval()
    models.load_weights(ours, theirs.state_dict(), "timm's")
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(ours(x), theirs(x))
    assert small("deit3_small").blocks[0].ls1.gamma.detach().unique().tolist() == pytest.approx([1e-4])


def test_deit_iii_has_the_same_stochastic_depth_in_all_blocks():
    model = small("deit3_small", drop_path_rate=0.2, norm_position="post")
    assert {block.drop_path1.drop_prob for block in model.blocks} == {0.2}
    assert small("deit_small", drop_path_rate=0.2).blocks[1].drop_path1.drop_prob == pytest.approx(0.2)
