"""timm's interface of all pyramids: dropout, pooling, device and dtype, sizes, layer groups, intermediate maps."""

import copy

import pytest
import timm
import torch
from timm.models import group_parameters
from timm.models._manipulate import reinit_non_persistent_buffers
from torch import nn

import models
from models.pyramid import Pyramid
from models.sizes import resized_width
from tests.families import SMALL

DEPTHS = (1, 2)


def small(name: str, **changes) -> nn.Module:
    return SMALL[name].create(**({"depths": DEPTHS, "num_classes": 5} | changes))


def is_pyramid(name: str) -> bool:
    return isinstance(SMALL[name].create(device="meta"), Pyramid)


def images(model: nn.Module) -> torch.Tensor:
    return torch.randn(2, 3, *model.img_size)


@pytest.fixture(params=filter(is_pyramid, SMALL))
def name(request):
    torch.manual_seed(0)
    return request.param


@pytest.mark.parametrize("rate", ["drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"])
def test_every_dropout_rate_acts_in_training_only(name, rate):
    model = small(name, **{rate: 0.5})
    x = images(model)
    assert not torch.equal(model.train()(x), model(x))
    plain = small(name)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(x), plain.eval()(x))


def test_every_pooling_equals_its_formula(name):
    model = small(name).eval()
    x = images(model)
    features = model.forward_features(x)
    pools = {"avg": features.mean((1, 2)), "max": features.amax((1, 2)), "": features}
    for pool, expected in (pools | {"avgmax": (pools["avg"] + pools["max"]) / 2}).items():
        model.global_pool = pool
        torch.testing.assert_close(model.forward_head(features, pre_logits=True), expected)
        assert model(x).shape == (*expected.shape[:-1], 5)
    refusal = "^model.global_pool=median is unknown: choose avg, max, avgmax, ''$"
    with pytest.raises(models.ModelError, match=refusal):
        small(name, global_pool="median")
    with pytest.raises(models.ModelError, match=refusal):
        model.reset_classifier(3, "median")
    assert model.num_classes == 5


def test_device_and_dtype_apply_to_every_parameter(name):
    on_meta = small(name, device="meta")
    assert {p.device.type for p in on_meta.parameters()} == {"meta"}
    model = small(name, dtype=torch.bfloat16).eval()
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model(images(model).bfloat16()).isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("way", ["assigned", "materialised"])
def test_a_model_built_on_the_meta_device_computes_the_same(name, way):
    reference = small(name).eval()
    with torch.device("meta"):
        model = small(name).eval()
    if way == "materialised":
        model.to_empty(device="cpu")
    model.load_state_dict(reference.state_dict(), assign=way == "assigned")
    x = images(model)
    assert torch.equal(model(x), reference(x))
    computed = dict(model.named_buffers())
    for buffer in computed.values():
        buffer.zero_()
    assert bool(reinit_non_persistent_buffers(model)) == bool(computed)
    assert torch.equal(model(x), reference(x))


def test_init_weights_gives_the_weights_of_the_constructor(name):
    with torch.device("meta"):
        model = small(name)
    model.to_empty(device="cpu")
    torch.manual_seed(1)
    model.init_weights()
    torch.manual_seed(1)
    for key, value in small(name).state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


@pytest.mark.parametrize("coarse", [False, True])
def test_every_parameter_is_in_the_right_layer_group(name, coarse):
    model = small(name)
    groups = group_parameters(model, model.group_matcher(coarse), reverse=True)
    assert groups.keys() == dict(model.named_parameters()).keys()
    depth = [f"stages.{stage}." for stage in range(2)] if coarse else ["stages.0.0", "stages.1.0", "stages.1.1"]
    depth = ["patch_embed", *depth] if coarse else ["patch_embed", *depth, "stages.1.2"]
    for group, prefix in enumerate([*depth, "head"]):
        assert {groups[key] for key in groups if key.startswith(prefix)} == {group}, prefix
    # The norm after the last stage has the rate of the layer before it, or of the head where layers are whole stages.
    assert {groups[key] for key in groups if key.startswith("norm.")} <= {len(depth) - (not coarse)}


@torch.no_grad()
def test_intermediate_maps_are_those_after_the_stages(name):
    model = small(name).eval()
    x = images(model)
    features, (first, second) = model.forward_intermediates(x, output_fmt="NHWC")
    assert torch.equal(features, model.norm(second)) and first.shape[1] == 2 * second.shape[1]
    (normed,) = model.forward_intermediates(x, 1, norm=True, intermediates_only=True)
    assert torch.equal(normed.permute(0, 2, 3, 1), features)
    both = model.forward_intermediates(x, norm=True, output_fmt="NHWC", intermediates_only=True)
    assert torch.equal(both[0], first) and torch.equal(both[1], features)  # the norm is that of the last stage
    last, maps = model.forward_intermediates(x, [0], stop_early=True, output_fmt="NHWC")
    assert torch.equal(last, first) and len(maps) == 1
    with pytest.raises(models.ModelError, match=r"^model.output_fmt=NLC is unknown: choose NCHW, NHWC$"):
        model.forward_intermediates(x, output_fmt="NLC")


@torch.no_grad()
def test_pruning_keeps_the_layers_of_the_requested_maps(name):
    model = small(name).eval()
    x = images(model)
    expected = model.forward_intermediates(x, [0], intermediates_only=True)
    pruned, width = copy.deepcopy(model), expected[0].shape[1]
    assert pruned.prune_intermediate_layers([0]) == [0]
    assert len(pruned.stages) == 1 and isinstance(pruned.norm, nn.Identity)
    assert pruned.num_features == pruned.head_hidden_size == width
    assert torch.equal(pruned.forward_intermediates(x, [0], intermediates_only=True)[0], expected[0])
    assert pruned(x).shape == (2, *expected[0].shape[2:], width)
    assert model.prune_intermediate_layers(1, prune_head=False) == [1] and model(x).shape == (2, 5)


@torch.no_grad()
def test_a_changed_image_size_equals_a_model_built_for_that_size(name):
    model = small(name).eval()
    side = 2 * model.img_size[0]
    built = small(name, img_size=side).eval()
    built.load_state_dict(model.state_dict())
    model.set_input_size((side, side))
    x = torch.randn(2, 3, side, side)
    assert torch.equal(model(x), built(x))
    assert timm.models.get_model_input_config(model)["input_size"] == (3, side, side)
    with pytest.raises(models.ModelError, match="does not fit"):
        model.set_input_size(side + 1)
    assert torch.equal(model(x), built(x))


@pytest.mark.parametrize("kind", ["list", "getter"])
def test_feature_extractors_refuse_an_image_of_another_size(name, kind):
    model = small(name, features_only=True, feature_cls=kind, out_indices=(1,))
    with pytest.raises(models.ModelError, match=r"takes images of .* and got \(8, 8\)"):
        model(torch.randn(1, 3, 8, 8))


def test_a_window_that_divides_a_resized_map_no_more_grows_with_the_side_that_grows_less():
    assert resized_width(6, (6, 6), (8, 16)) == 8
    assert resized_width(6, (6, 6), (12, 24)) == 6  # it still divides both sides
