"""Stripes follow the image size. A change that would need weights of other shapes is refused."""

import pytest
import timm
import torch
from torch import nn

import models
from models.attention import StripeAttention


def stripes(model: nn.Module) -> list[list[tuple[int, int]]]:
    """(height, width) of the stripes of each branch, in the last block of every stage."""
    return [[m.stripe for m in stage[-1].modules() if isinstance(m, StripeAttention)] for stage in model.stages]


def test_at_384_pixels_stripes_are_those_of_the_paper():
    with torch.device("meta"):
        model = timm.create_model("cswin_tiny")
        model.set_input_size(384)
    assert model.stripe_widths == (1, 2, 12, 12)
    assert stripes(model) == [[(96, 1), (1, 96)], [(48, 2), (2, 48)], [(24, 12), (12, 24)], [(12, 12)]]


def test_given_stripes_are_used_if_they_fit_and_refused_otherwise():
    sizes = {"img_size": 32, "embed_dim": 8, "depths": (1, 1, 1), "num_heads": (2, 2, 4), "stripes": (1, 2, 2)}
    model = timm.create_model("cswin_tiny", num_classes=5, **sizes).eval()
    model.set_input_size((32, 64), stripes=(2, 1, 1))
    assert stripes(model) == [[(8, 2), (2, 16)], [(4, 1), (1, 8)], [(2, 4)]]
    assert model(torch.randn(1, 3, 32, 64)).shape == (1, 5)
    for width, message in ((3, "stripes of width 3 do not divide"), (0, "must be 1 or more")):
        with pytest.raises(models.ModelError, match=message):
            model.set_input_size(32, stripes=(1, width, 1))


def test_a_stage_keeps_its_number_of_branches():
    sizes = {"embed_dim": 8, "depths": (1, 1), "num_heads": (2, 2), "num_classes": 5}
    whole = timm.create_model("cswin_tiny", img_size=16, stripes=(4, 2), **sizes).eval()
    whole.set_input_size(32)
    assert stripes(whole) == [[(8, 8)], [(4, 4)]] and whole(torch.randn(1, 3, 32, 32)).shape == (1, 5)
    with pytest.raises(models.ModelError, match="stage 1 has weights for its whole map"):
        whole.set_input_size(32, stripes=(4, 2))
    cut = timm.create_model("cswin_tiny", img_size=32, stripes=(4, 2), **sizes)
    with pytest.raises(models.ModelError, match="stage 1 has weights for stripes"):
        cut.set_input_size(16)


def test_a_map_with_one_side_of_the_stripes_width_is_not_attended_as_a_whole():
    sizes = {"img_size": (16, 32), "embed_dim": 8, "depths": (1, 1), "num_heads": (2, 2), "stripes": (4, 2)}
    model = timm.create_model("cswin_tiny", num_classes=5, **sizes).eval()
    assert stripes(model)[0] == [(4, 4), (4, 8)]  # on a map of 4 x 8 tokens
    model.set_input_size((32, 64))
    assert model.stripe_widths[0] == 4 and stripes(model)[0] == [(8, 4), (4, 16)]


def test_the_multiple_that_a_refusal_names_fits():
    sizes = {"embed_dim": 8, "depths": (1, 1, 1), "num_heads": (2, 2, 4), "stripes": (3, 1, 1)}
    with pytest.raises(models.ModelError, match=r"stripes of width 3 .* use image sizes that are multiples of 48$"):
        timm.create_model("cswin_tiny", img_size=32, **sizes)
    timm.create_model("cswin_tiny", img_size=48, **sizes)
