"""timm's own model tests, applied to our models. A comment at each test names timm's test in its tests/test_models.py.

The fast tests run a small form of each family. The slow tests run registered models, with fewer blocks: all tests for
one or two of a family, and two tests for the others.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import timm
import torch
from timm.layers import get_channel_dim, get_spatial_dim
from timm.models import FeatureInfo
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from tests.families import FORMS, SMALL

# Of these two families, options that replace more of timm.
CASES = SMALL | {
    "lipsformer_cswin": FORMS["lipsformer_cswin, certified"],
    "vit": FORMS["vit, convolutional stem"].but(norm_position="post"),
}
OURS = [name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith("models.")]
# At full size, the others differ from these in channels, or in parts that the small forms of the families have, too.
ALL_TESTS = [
    "lipsformer_swin_tiny",
    "lipsformer_cswin_tiny",
    "cswin_tiny",
    "vit5_small",
    "deit_tiny",
    "deit_small_convstem",
]


@dataclass
class Case:
    """A model that is built once for all tests, and images for it."""

    build: Callable[..., nn.Module]
    model: nn.Module
    images: Tensor

    def create(self, **options) -> nn.Module:
        return self.build(**options).eval()

    def copy(self) -> nn.Module:
        return copy.deepcopy(self.model)


def few_blocks(name: str) -> dict:
    """Options that keep a registered model's sizes and widths, but only one block of each kind."""
    with torch.device("meta"):
        model = timm.create_model(name)
    if not hasattr(model, "stages"):
        return {"depth": 2}
    # Two blocks in the third stage, so that one block follows another.
    return {"depths": (1, 1, 2, 1) if len(model.stages) == 4 else (1, 2)}


@pytest.fixture(
    scope="module",
    params=[pytest.param(small, id=f"{family}, small") for family, small in CASES.items()]
    + [pytest.param(name, id=name, marks=pytest.mark.slow) for name in ALL_TESTS],
)
def case(request):
    if isinstance(request.param, str):
        return registered(request.param)
    return case_of(request.param.create, request.param.side)


def registered(name: str) -> Case:
    """A registered model with few blocks."""
    return case_of(partial(timm.create_model, name, **few_blocks(name)), timm.get_pretrained_cfg(name).input_size[-1])


def case_of(build: Callable[..., nn.Module], side: int) -> Case:
    torch.manual_seed(0)
    return Case(build, build().eval(), torch.randn(2, 3, side, side))


def finite(*outputs: Tensor) -> bool:
    return all(output.shape[0] == 2 and bool(output.isfinite().all()) for output in outputs)


def check_maps(maps: list[Tensor], info: FeatureInfo, output_fmt: str, side: int) -> None:
    """Check that every map has the channels and size that ``feature_info`` announces."""
    assert len(maps) == len(info.channels()) and finite(*maps)
    for found, channels, reduction in zip(maps, info.channels(), info.reduction(), strict=True):
        assert found.shape[get_channel_dim(output_fmt)] == channels
        assert [found.shape[dim] for dim in get_spatial_dim(output_fmt)] == [math.ceil(side / reduction)] * 2


@torch.no_grad()
def test_forward_is_finite_and_the_same_with_checkpointing(case):  # test_model_forward
    model = case.copy()
    outputs = model(case.images)
    assert finite(outputs)
    model.set_grad_checkpointing()
    torch.testing.assert_close(model(case.images), outputs, rtol=1e-4, atol=1e-5)


def test_backward_gives_every_parameter_a_gradient(case):  # test_model_backward
    model = case.create(num_classes=42).train()
    outputs = model(case.images)
    assert finite(outputs) and outputs.shape == (2, 42)
    outputs.mean().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@torch.no_grad()
def test_default_cfg_is_correct(case):  # test_model_default_cfgs, test_model_default_cfgs_non_std
    model, cfg = case.copy(), case.model.default_cfg
    names = model.state_dict().keys()
    assert {f"{cfg['classifier']}.weight", f"{cfg['first_conv']}.weight"} <= names
    features = model.forward_features(case.images)
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.head_hidden_size)
    model.reset_classifier(0)
    assert model.num_classes == 0
    torch.testing.assert_close(model(case.images), pooled)
    torch.testing.assert_close(case.create(num_classes=0)(case.images).shape, pooled.shape)
    model.reset_classifier(0, "")
    whole = case.create(num_classes=0, global_pool="")(case.images)
    assert model(case.images).shape == features.shape == whole.shape
    if (output_fmt := getattr(model, "output_fmt", None)) is None:
        assert features.shape[-1] == model.num_features  # tokens
    else:
        assert features.shape[get_channel_dim(output_fmt)] == model.num_features
        if case.images.shape[1:] == cfg["input_size"]:
            assert tuple(features.shape[dim] for dim in get_spatial_dim(output_fmt)) == cfg["pool_size"]


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_scripted_model_computes_the_same(case):  # test_model_forward_torchscript
    torch.testing.assert_close(torch.jit.script(case.copy())(case.images), case.model(case.images))


@torch.no_grad()
@pytest.mark.parametrize("kind", [{}, {"feature_cls": "getter"}, {"feature_cls": "fx"}], ids=str)
def test_features_only_works(case, kind):  # test_model_forward_features, test_model_forward_intermediates_features
    if kind == {"feature_cls": "fx"} and not hasattr(case.model, "output_fmt"):
        pytest.skip("a traced vision transformer of timm outputs tokens, not feature maps")
    model = case.create(features_only=True, **kind)
    check_maps(model(case.images), model.feature_info, str(model.output_fmt.value), case.images.shape[-1])


@torch.no_grad()
def test_forward_intermediates_works(case):  # test_model_forward_intermediates
    model = case.copy()
    info = FeatureInfo(model.feature_info, len(model.feature_info))
    last, maps = model.forward_intermediates(case.images, output_fmt="NCHW")
    check_maps(maps, info, "NCHW", case.images.shape[-1])
    torch.testing.assert_close(last, model.forward_features(case.images))
    model.set_grad_checkpointing()
    torch.testing.assert_close(model.forward_intermediates(case.images)[0], last, rtol=1e-4, atol=1e-5)


def traced(model: nn.Module) -> nn.Module:
    """The model rebuilt from its FX graphs for training and for evaluation, up to the last node."""
    train, evaluation = get_graph_node_names(model)
    return create_feature_extractor(model, train_return_nodes=[train[-1]], eval_return_nodes=[evaluation[-1]])


@torch.no_grad()
def test_a_traced_model_computes_the_same(case):  # test_model_forward_fx
    (outputs,) = traced(case.copy()).eval()(case.images).values()
    assert torch.equal(outputs, case.model(case.images))


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_traced_and_scripted_model_computes_the_same(case):  # test_model_forward_fx_torchscript
    (outputs,) = torch.jit.script(traced(case.copy()).eval())(case.images).values()
    torch.testing.assert_close(outputs, case.model(case.images))


def test_a_traced_model_gives_every_parameter_a_gradient(case):  # test_model_backward_fx
    model = traced(case.create(num_classes=42)).train()
    (outputs,) = model(case.images).values()
    assert finite(outputs) and outputs.shape == (2, 42)
    outputs.mean().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_scripted_fx_features_are_finite(case):  # test_model_forward_torchscript_with_features_fx
    model = case.create(features_only=True, feature_cls="fx")
    outputs = torch.jit.script(model)(case.images)
    assert isinstance(outputs, list) and finite(*outputs)


@pytest.mark.slow
def test_an_exported_model_computes_the_same(case):
    """Not in timm's tests. torch.export must be able to trace all branches of our layers."""
    exported = torch.export.export(case.copy(), (case.images,)).module()
    torch.testing.assert_close(exported(case.images), case.model(case.images), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(OURS) - set(ALL_TESTS)))
def test_the_other_registered_models_are_what_they_announce_and_can_be_trained(name):
    other = registered(name)
    test_default_cfg_is_correct(other)
    test_backward_gives_every_parameter_a_gradient(other)
