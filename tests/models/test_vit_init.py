"""Initialisations: the weights that vision transformers begin with."""

import math

import pytest
import timm
import torch
from torch import nn

import models
from engine.options.compose import settings_of

SMALL = {"img_size": 32, "depth": 1, "num_classes": 5}
DEIT = ("deit_tiny", "deit_small", "deit_base", "deit_small_convstem", "deit3_small")


def of_the_command(name: str, *options: str) -> nn.Module:
    """The model that a command trains, with one block."""
    chosen = f"experiment={name}" if name == "deit3_small" else f"model={name}"
    return models.build_model(settings_of([chosen, "model.depth=1", *options]).model, 5, 32)


@pytest.mark.parametrize("name", DEIT)
def test_the_class_token_begins_as_in_the_code_of_deit(name):
    """Truncated normal with 0.02, as in DeiT III's models_v2.py and in timm 0.3.2, on which DeiT trained."""
    torch.manual_seed(0)
    for model in (timm.create_model(name, **SMALL), of_the_command(name)):
        assert model.cls_token.std().item() == pytest.approx(0.02, rel=0.15)
        with torch.no_grad():
            model.cls_token.zero_()
        model.init_weights()
        assert model.cls_token.std().item() == pytest.approx(0.02, rel=0.15)


def test_nothing_else_differs_from_timms_initialisation():
    models_of = {}
    for init in ("timm", "deit"):
        torch.manual_seed(0)
        models_of[init] = of_the_command("deit_small", f"model.init={init}").state_dict()
    different = [name for name, value in models_of["timm"].items() if not torch.equal(value, models_of["deit"][name])]
    assert different == ["cls_token"] and models_of["timm"]["cls_token"].abs().max() < 1e-5


def test_in_google_s_code_queries_keys_and_values_are_three_xavier_matrices():
    """timm's port draws them as one, which makes them smaller by the factor √2."""
    model = timm.create_model("vit_small_sincos", **SMALL)
    for _ in range(2):
        for part in model.blocks[0].attn.qkv.weight.chunk(3):
            assert part.shape == (384, 384)
            assert part.abs().max().item() == pytest.approx(math.sqrt(6 / (384 + 384)), rel=1e-3)
        model.init_weights()


def test_other_models_begin_as_timms():
    for name in ("vit_preln_small", "vit_postln_small"):
        assert timm.create_model(name, **SMALL).cls_token.abs().max() < 1e-5
