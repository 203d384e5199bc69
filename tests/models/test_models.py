"""The backbones: exact sizes, initialisation, timm's interface, and clear refusals."""

import dataclasses
import inspect
import math
from pathlib import Path

import pytest
import timm
import torch
from omegaconf import OmegaConf
from torch import nn

import models
from engine.measuring.flops import forward_flops
from models.config import TimmConfig
from models.layers import PlainResidual, WeightedResidual
from models.lipsformer_swin import LipsFormerSwinBlock
from models.spectral import largest_singular_value, spectral_init_

# Parameters and GMACs of the released code at 224 pixels.
SIZES = {
    "lipsformer_swin_tiny": (30_908_578, 4.98),
    "lipsformer_swin_small": (54_479_794, 9.66),
    "lipsformer_swin_base": (96_011_168, 16.97),
    "lipsformer_cswin_tiny": (23_767_720, 4.67),
    "cswin_tiny": (22_320_552, 4.32),
    "cswin_small": (34_643_304, 6.80),
    "cswin_base": (77_382_184, 14.96),
}
SMALL = {"img_size": 28, "patch_size": 2, "embed_dim": 12, "depths": (1, 1), "num_heads": (2, 4), "num_classes": 5}


def small(**changes) -> nn.Module:
    return timm.create_model("lipsformer_swin_tiny", **(SMALL | changes))


@pytest.mark.parametrize("name", SIZES)
def test_the_numbers_of_parameters_and_macs_are_exact(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    parameters, gmacs = SIZES[name]
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert forward_flops(model, 224) / 2e9 == pytest.approx(gmacs, abs=0.005)


OURS = [path for path in sorted(Path("conf/model").glob("*.yaml")) if "schema/model/timm" not in path.read_text()]


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_config_file_and_registry_build_the_same_model(path):
    written = OmegaConf.load(path)
    family = written.defaults[0].removeprefix("/schema/model/").removesuffix("@_here_")
    options = OmegaConf.merge(models.FAMILIES[family], {k: v for k, v in written.items() if k != "defaults"})
    side = timm.get_pretrained_cfg(options.name).input_size[-1]
    with torch.device("meta"):
        built = models.build_model(OmegaConf.to_object(options), 1000, side)
        registered = timm.create_model(path.stem, num_classes=1000)
    assert {n: p.shape for n, p in built.named_parameters()} == {n: p.shape for n, p in registered.named_parameters()}


def test_spectral_init_gives_every_weight_a_spectral_norm_of_one():
    model = small(embed_dim=24)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    assert len(layers) > 10
    for name, layer in layers.items():
        sigma = torch.linalg.matrix_norm(layer.weight.detach().double().flatten(1), 2)
        assert sigma.item() == pytest.approx(1, abs=1e-5), name
        if isinstance(layer, nn.Linear) and layer.bias is not None:
            assert not layer.bias.any(), name


def test_largest_singular_value_is_exact():
    for shape in ((5, 300), (300, 5), (64, 3, 4, 4), (32, 1, 7, 7)):
        weight = torch.randn(shape)
        expected = torch.linalg.svdvals(weight.double().flatten(1))[0]
        assert largest_singular_value(weight).item() == pytest.approx(expected.item(), rel=1e-9)


def test_residual_scales_start_at_one_over_the_number_of_blocks():
    scales = [m.scale.detach() for m in small(depths=(1, 2)).modules() if isinstance(m, WeightedResidual)]
    assert len(scales) == 4 * 3 and torch.cat(scales).unique().tolist() == pytest.approx([1 / 3])


@pytest.mark.parametrize("residual", ["weighted", "plain"])
def test_drop_path_grows_linearly_and_is_the_same_in_all_branches_of_a_block(residual):
    model = small(depths=(2, 2), drop_path_rate=0.3, residual=residual)
    blocks = [b for stage in model.stages for b in stage if isinstance(b, LipsFormerSwinBlock)]
    for i, block in enumerate(blocks):
        drops = [r.drop_path for r in block.modules() if isinstance(r, WeightedResidual | PlainResidual)]
        rates = [getattr(drop, "drop_prob", drop) for drop in drops]
        assert rates == pytest.approx([0.1 * i] * 4)


def test_every_parameter_gets_a_gradient():
    model = small()
    model(torch.randn(2, 3, 28, 28)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_timms_methods_work():
    model = small()
    x = torch.randn(2, 3, 28, 28)
    features = model.forward_features(x)
    assert features.shape == (2, 7, 7, model.num_features)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.num_features)
    torch.testing.assert_close(model(x), model.forward_head(features))
    assert model.default_cfg["classifier"] == "head" and model.get_classifier() is model.head
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    assert largest_singular_value(model.head.weight).item() == pytest.approx(1, abs=1e-5)
    model.reset_classifier(0)
    assert model(x).shape == (2, model.num_features)
    assert any("relative_position_bias_table" in name for name in model.no_weight_decay())


def test_a_model_with_gradient_checkpointing_compiles_as_one_graph():
    torch._dynamo.reset()
    model, x = small(), torch.randn(2, 3, 28, 28)
    expected = torch.autograd.grad(model(x).square().sum(), model.parameters())
    model.set_grad_checkpointing()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for found, wanted in zip(
        torch.autograd.grad(compiled(x).square().sum(), model.parameters()), expected, strict=True
    ):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_a_new_classifier_has_the_dtype_of_the_model():
    model = small().double()
    model.reset_classifier(3)
    assert model(torch.randn(2, 3, 28, 28, dtype=torch.float64)).shape == (2, 3)


def test_image_sizes_that_the_window_divides_work():
    assert small(img_size=56)(torch.randn(1, 3, 56, 56)).shape == (1, 5)
    assert small(img_size=32, window_size=4)(torch.randn(1, 3, 32, 32)).shape == (1, 5)
    assert small(img_size=(28, 56))(torch.randn(1, 3, 28, 56)).shape == (1, 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"img_size": 30}, "image size 30 does not fit: .* multiple of 28, such as 28 or 56"),
        ({"img_size": -3}, "image size -3 does not fit: .* multiple of 28, such as 28$"),
        ({"window_size": 0}, "model.window_size=0 must be 1 or more"),
        ({"num_heads": (0, 4)}, r"model.num_heads=\(0, 4\) must be 1 or more"),
        ({"num_heads": (5, 4)}, "stage 1: 5 heads do not divide 12 channels"),
        ({"depths": ()}, "model.depths is empty: give one number for each stage"),
        ({"embed_dim": 1, "num_heads": (1, 1)}, "CenterNorm of 1 channel is always zero: set model.embed_dim to 2"),
        ({"mlp_ratio": 0.05}, "model.mlp_ratio=0.05 gives no valid hidden width for 12 channels"),
        ({"mlp_ratio": math.inf}, "model.mlp_ratio=inf"),
        ({"mlp_ratio": math.nan}, "model.mlp_ratio=nan"),
        ({"depths": (1, 1, 1)}, "model.depths has 3 stages and model.num_heads has 2"),
    ],
)
def test_impossible_shapes_are_refused_in_one_line(changes, message):
    with pytest.raises(models.ModelError, match=message):
        small(**changes)


def test_an_image_of_another_size_is_refused():
    with pytest.raises(models.ModelError, match=r"takes images of \(28, 28\) pixels and got \(32, 32\)"):
        small()(torch.randn(1, 3, 32, 32))


def test_the_model_exports_as_one_graph():
    """So nothing in the forward pass reads a tensor's value on the host."""
    exported = torch.export.export(small().eval(), (torch.randn(1, 3, 28, 28),))
    assert exported.module()(torch.randn(1, 3, 28, 28)).shape == (1, 5)


def test_an_unknown_model_name_gets_similar_names():
    with pytest.raises(models.ModelError, match=r"did you mean .*lipsformer_swin_tiny"):
        models.build_model(TimmConfig(name="lipsformer_swim_tiny"), 10, 28)


def test_an_argument_that_the_model_does_not_have_is_refused():
    with pytest.raises(models.ModelError, match=r"model 'resnet18' cannot be built with .*colour"):
        models.build_model(TimmConfig(name="resnet18", kwargs={"colour": 3}), 10, 28)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet18", {"kwargs": {"act_layer": "sharp"}}, "'sharp'"),
        ("resnet18", {"kwargs": {"output_stride": 3}}, "AssertionError"),
        ("deit_tiny_patch16_224", {"kwargs": {"embed_dim": -3}}, "negative dimension"),
        ("deit_tiny_patch16_224", {"kwargs": {"num_heads": 0}}, "by zero"),
        ("vgg11", {"grad_checkpointing": True}, "gradient checkpointing not supported"),
        ("vgg11", {"drop_path_rate": 0.1}, "unexpected keyword argument 'drop_path_rate'"),
    ],
)
def test_errors_of_timm_become_one_line(name, options, message):
    with pytest.raises(models.ModelError, match=f"model '{name}' cannot be built with .*{message}") as error:
        models.build_model(TimmConfig(name=name, **options), 10, 32)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "kwargs", "side", "message"),
    [
        ("test_vit", {}, 8, r"cannot take images of 3 × 8 × 8: .*divisible by patch size"),
        ("test_resnet", {"in_chans": 1}, 32, r"cannot take images of 3 × 32 × 32: Given groups=1"),
        (
            "test_vit",
            {"global_pool": ""},
            160,
            r"outputs \(2, \d+, 5\) for two images, not one score per class \(2, 5\)",
        ),
        ("test_resnet", {"features_only": True}, 32, r"outputs list for two images"),
        ("test_resnet", {"pretrained": True}, 32, r"leave out model.kwargs.pretrained, and add checkpoint=FILE"),
        (
            "test_resnet",
            {"checkpoint_path": "none.pt"},
            32,
            r"leave out model.kwargs.checkpoint_path, and add checkpoint=",
        ),
    ],
)
def test_a_model_that_does_not_give_one_score_per_class_is_refused(name, kwargs, side, message):
    """When it is built, and not in the first step of a run."""
    with pytest.raises(models.ModelError, match=message):
        models.build_model(TimmConfig(name=name, kwargs=kwargs), 5, side)


def test_an_unknown_pretrained_tag_is_refused():
    models.refuse_unknown("resnet50.a1_in1k")
    with pytest.raises(models.ModelError, match=r"no model 'resnet50.a0': leave out the part after the dot"):
        models.refuse_unknown("resnet50.a0")


def test_timm_models_without_stochastic_depth_can_be_built():
    with torch.device("meta"):
        model = models.build_model(TimmConfig(name="vgg11"), 7, 224)
        assert model(torch.empty(1, 3, 224, 224)).shape == (1, 7)


def test_timm_models_are_built_for_the_image_size():
    model = models.build_model(TimmConfig(name="deit_tiny_patch16_224"), 7, 64)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 7)


@pytest.mark.parametrize("family", sorted(models.FAMILIES.keys() - {"timm"}))
def test_every_option_of_a_family_is_an_argument_of_its_models(family):
    files = sorted(Path("conf/model").glob("*.yaml"))
    name = next(file.stem for file in files if f"- /schema/model/{family}@_here_" in file.read_text())
    with torch.device("meta"):
        model = timm.create_model(name)
    arguments = {f.name for f in dataclasses.fields(models.FAMILIES[family])}
    taken = {name for kind in type(model).__mro__ for name in inspect.signature(kind.__init__).parameters}
    not_passed = set() if timm.get_pretrained_cfg(name).fixed_input_size else {"img_size"}
    assert arguments - {"name", "grad_checkpointing", "kernels"} - not_passed <= taken


def test_spectral_init_leaves_convolution_biases_random():
    layer = nn.Conv2d(3, 8, 3)
    before = layer.bias.clone()
    spectral_init_(layer)
    assert torch.equal(before, layer.bias)


def test_a_model_that_the_meta_device_cannot_run_is_still_ready_to_train(monkeypatch):
    """Its output is then looked at on the CPU, on the model itself."""
    seen = []

    def forward(self, x, *args, **kwargs):
        seen.append(x.device.type)
        if x.is_meta:
            raise NotImplementedError("not on the meta device")
        return x.new_zeros(len(x), self.num_classes)

    monkeypatch.setattr(timm.models.VisionTransformer, "forward", forward)
    model = models.build_model(TimmConfig(name="test_vit"), 10, 160)
    assert seen == ["meta", "cpu"] and all(module.training for module in model.modules())
