"""Every tensor name of the authors' models is mapped to the right name of ours."""

import pytest
import timm
import torch

import models
from models.weights.loading import named_for
from models.weights.released import to_our_names
from tests.authors import released

MODELS = ("lipsformer_swin_tiny", "lipsformer_cswin_tiny", "cswin_tiny", "vit5_small")
# How many tensors of each file our model does not have.
INDEX_TABLES, UNUSED_NORMS = 12, 2 * 25
FREQUENCIES = 2 * 12
LEFT_OUT = {
    **{"lipsformer_swin_tiny": INDEX_TABLES, "lipsformer_cswin_tiny": UNUSED_NORMS},
    **{"cswin_tiny": 0, "vit5_small": FREQUENCIES},
}
# One name of each kind, written by hand.
NAMES = {
    "lipsformer_swin_tiny": {
        "patch_embed.proj.weight": "patch_embed.proj.weight",
        "layers.0.blocks.1.attn.relative_position_bias_table": "stages.0.1.attn.branch.relative_position_bias_table",
        "layers.0.downsample.reduction.weight": "stages.1.0.reduction.weight",
        "layers.2.downsample.norm.bias": "stages.3.0.norm.bias",
        "layers.0.blocks.0.dwconv_layers.0.weight": "stages.0.0.conv1.branch.depthwise.weight",
        "layers.0.blocks.0.nin.bias": "stages.0.0.conv1.branch.pointwise.bias",
        "layers.1.blocks.0.dwconv_layers.1.bias": "stages.1.1.conv2.branch.depthwise.bias",
        "layers.1.blocks.1.scale_layers.0.scale": "stages.1.2.conv1.scale",
        "layers.2.blocks.5.scale_layers.1.scale": "stages.2.6.conv2.scale",
        "layers.3.blocks.1.attn.qkv.weight": "stages.3.2.attn.branch.qkv.weight",
        "layers.3.blocks.1.alpha1.scale": "stages.3.2.attn.scale",
        "layers.3.blocks.1.alpha2.scale": "stages.3.2.mlp.scale",
        "layers.3.blocks.0.mlp.fc1.weight": "stages.3.1.mlp.branch.fc1.weight",
        "layers.3.blocks.0.norm1.weight": "stages.3.1.norm1.weight",
        "layers.3.blocks.0.norm2.bias": "stages.3.1.norm2.bias",
        "norm.weight": "norm.weight",
        "head.bias": "head.bias",
    },
    "lipsformer_cswin_tiny": {
        "stage1_conv_embed.0.weight": "patch_embed.proj.weight",
        "stage1_conv_embed.2.bias": "patch_embed.norm.bias",
        "merge1.conv.weight": "stages.1.0.conv.weight",
        "merge3.norm.bias": "stages.3.0.norm.bias",
        "stage1.0.dwconv_layers.0.bias": "stages.0.0.conv1.branch.depthwise.bias",
        "stage1.0.nin.weight": "stages.0.0.conv1.branch.pointwise.weight",
        "stage2.1.dwconv_layers.1.weight": "stages.1.2.conv2.branch.depthwise.weight",
        "stage3.20.scale_layers.0.scale": "stages.2.21.conv1.scale",
        "stage3.0.scale_layers.1.scale": "stages.2.1.conv2.scale",
        "stage3.0.qkv.weight": "stages.2.1.attn.branch.qkv.weight",
        "stage3.0.proj.bias": "stages.2.1.attn.branch.proj.bias",
        "stage3.0.attns.1.get_v.weight": "stages.2.1.attn.branch.stripes.1.lepe.weight",
        "stage4.0.attns.0.get_v.bias": "stages.3.1.attn.branch.stripes.0.lepe.bias",
        "stage4.0.alpha1.scale": "stages.3.1.attn.scale",
        "stage4.0.alpha2.scale": "stages.3.1.mlp.scale",
        "stage4.0.mlp.fc2.weight": "stages.3.1.mlp.branch.fc2.weight",
        "stage4.0.norm2.weight": "stages.3.1.norm.weight",
        "head.weight": "head.weight",
    },
    "vit5_small": {
        "reg_token": "reg_token",
        "blocks.3.gamma_1": "blocks.3.ls1.gamma",
        "blocks.11.gamma_2": "blocks.11.ls2.gamma",
        "blocks.0.attn.q_norm.weight": "blocks.0.attn.q_norm.weight",
        "head.bias": "head.bias",
    },
    "cswin_tiny": {
        "stage1_conv_embed.0.bias": "patch_embed.proj.bias",
        "stage1_conv_embed.2.weight": "patch_embed.norm.weight",
        "merge2.conv.bias": "stages.2.0.conv.bias",
        "stage1.0.norm1.weight": "stages.0.0.norm1.weight",
        "stage2.1.norm2.bias": "stages.1.2.norm2.bias",
        "stage3.20.qkv.weight": "stages.2.21.attn.qkv.weight",
        "stage3.0.proj.weight": "stages.2.1.attn.proj.weight",
        "stage3.0.attns.0.get_v.weight": "stages.2.1.attn.stripes.0.lepe.weight",
        "stage3.0.attns.1.get_v.bias": "stages.2.1.attn.stripes.1.lepe.bias",
        "stage4.0.mlp.fc1.weight": "stages.3.1.mlp.fc1.weight",
        "norm.bias": "norm.bias",
        "head.weight": "head.weight",
    },
}


def shapes_of(weights: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in weights.items()}


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_is_mapped_to_a_tensor_of_our_model(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    found = named_for(model, released(name))
    assert shapes_of(found) == shapes_of(model.state_dict())
    assert len(found) == len(released(name)) - LEFT_OUT[name]
    models.load_weights(model, released(name))


@pytest.mark.parametrize("name", MODELS)
def test_names_equal_those_written_by_hand(name):
    theirs = released(name)
    ours = to_our_names(theirs)
    for old, new in NAMES[name].items():
        assert ours[new] is theirs[old], old


@pytest.mark.parametrize("name", MODELS)
def test_no_two_tensors_get_the_same_name(name):
    """Only unused norms, and frequencies that follow from the sizes, are left out."""
    theirs = released(name)
    ours = to_our_names(theirs)
    places = {id(value): name for name, value in theirs.items()}
    left_out = theirs.keys() - {places[id(value)] for value in ours.values()}
    assert len(theirs) - len(ours) == len(left_out)
    assert all(part.split(".")[2] == "norm1" or part.endswith(".freqs") for part in left_out)
    assert len(left_out) == {"lipsformer_cswin_tiny": UNUSED_NORMS, "vit5_small": FREQUENCIES}.get(name, 0)
    assert to_our_names(ours) is ours, "our own names must not change"


def test_names_of_other_models_do_not_change():
    for name in ("swin_tiny_patch4_window7_224", "deit_tiny_patch16_224", "lipsformer_swin_mini"):
        with torch.device("meta"):
            weights = timm.create_model(name).state_dict()
        assert to_our_names(weights) is weights


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("layers.2.blocks.3.alpha2.scale"), r"1 missing \(stages.2.4.mlp.scale\)$"),
        (lambda w: w.update({"layers.0.blocks.0.gamma": w["norm.bias"]}), r"1 unexpected \(stages.0.0.gamma\)$"),
        (lambda w: w.update({"momentum": w["norm.bias"]}), r"1 unexpected \(momentum\)$"),
        (lambda w: w.update({"head.bias": w["norm.bias"]}), r"shape \(head.bias \(768,\) instead of \(1000,\)\)$"),
    ],
    ids=["missing", "unexpected in a block", "unexpected", "shape"],
)
def test_a_tensor_that_does_not_fit_is_named(change, message):
    with torch.device("meta"):
        model = timm.create_model("lipsformer_swin_tiny")
    weights = released("lipsformer_swin_tiny")
    change(weights)
    with pytest.raises(models.ModelError, match=message):
        models.load_weights(model, weights, "F")
