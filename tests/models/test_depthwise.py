"""The depthwise convolution has the same values and gradients as PyTorch's."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from models.depthwise import DepthwiseConv2d, _EagerDepthwise
from models.errors import ModelError
from tests.devices import on_devices


def plain(layer: DepthwiseConv2d) -> nn.Conv2d:
    conv = nn.Conv2d(
        layer.in_channels, layer.out_channels, layer.kernel_size, padding=layer.padding, groups=layer.groups
    )
    conv.load_state_dict(layer.state_dict())
    return conv


@pytest.mark.parametrize("shape", [(3, 5, 6, 4), (2, 16, 7, 7), (1, 8, 1, 9), (4, 6, 1, 1), (0, 4, 5, 5)])
@pytest.mark.parametrize("kernel", [3, 7])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_equal_those_of_a_convolution(shape, kernel, layout):
    torch.manual_seed(0)
    layer = DepthwiseConv2d(shape[1], kernel)
    reference = plain(layer)
    x = torch.randn(shape).to(memory_format=layout).requires_grad_()
    y, expected = layer(x), reference(x)
    assert "EagerDepthwise" in y.grad_fn.name() and "EagerDepthwise" not in expected.grad_fn.name()
    torch.testing.assert_close(y, expected)
    direction = torch.randn(shape)
    got = torch.autograd.grad(y, [x, *layer.parameters()], direction)
    wanted = torch.autograd.grad(expected, [x, *reference.parameters()], direction)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@on_devices
def test_without_onednn_too(device, monkeypatch):
    """As on a GPU, where it has gradients of its own. float64 is exact enough to compare and needs no oneDNN."""
    monkeypatch.setattr("models.depthwise.has_fast_gradients", lambda x: True)
    layer = DepthwiseConv2d(6, 7).to(device, torch.float64)
    x = torch.randn(2, 6, 9, 8, dtype=torch.float64, device=device, requires_grad=True)
    direction, gradients = torch.randn(2, 6, 9, 8, dtype=torch.float64, device=device), []
    for module in (layer, plain(layer).to(device, torch.float64)):
        y = module(x)
        assert ("EagerDepthwise" in y.grad_fn.name()) == (module is layer)
        gradients.append([y, *torch.autograd.grad(y, [x, *module.parameters()], direction)])
    for found, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(found, wanted)


def test_backward_forward_mode_and_second_derivatives_are_correct():
    torch.manual_seed(0)
    inputs = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((2, 3, 4, 5), (3, 1, 3, 3), (3,))]
    assert torch.autograd.gradcheck(_EagerDepthwise.apply, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(_EagerDepthwise.apply, inputs)


def test_forward_mode_works_if_only_the_input_has_a_tangent():
    layer = DepthwiseConv2d(4, 3)
    x, tangent = torch.randn(2, 2, 4, 5, 5).unbind(0)
    got = torch.func.jvp(layer, (x,), (tangent,))[1]
    expected = F.conv2d(tangent, layer.weight, padding=1, groups=4)
    torch.testing.assert_close(got, expected)


def test_under_autocast_it_computes_in_bf16_and_its_gradients_are_fp32():
    layer = DepthwiseConv2d(8, 3)
    reference = plain(layer)
    x = torch.randn(2, 8, 5, 5)
    outputs = []
    for module in (layer, reference):
        with torch.autocast("cpu", torch.bfloat16):
            outputs.append(module(x))
        outputs[-1].float().square().mean().backward()
    assert outputs[0].dtype == torch.bfloat16 and layer.weight.grad.dtype == torch.float32
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(layer.weight.grad, reference.weight.grad, atol=2e-2, rtol=2e-2)


@on_devices
def test_scripted_and_exported_layers_are_plain_convolutions(device):
    layer, x = DepthwiseConv2d(4, 3).to(device), torch.randn(1, 4, 3, 3, device=device)
    torch.jit.script(layer)(x).sum().backward()
    assert layer.weight.grad is not None
    targets = [str(node.target) for node in torch.export.export(layer, (x,)).graph.nodes if node.op == "call_function"]
    assert targets == ["aten.conv2d.default"]


def test_compiled_for_a_gpu_it_keeps_its_own_gradients():
    """Fake tensors stand for those of a GPU, which this test does not need."""
    calls = []

    def record(graph, inputs):
        calls.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    with FakeTensorMode():
        layer, x = DepthwiseConv2d(4, 3, device="cuda"), torch.randn(2, 4, 5, 5, device="cuda", requires_grad=True)
        torch.compile(layer, backend=record, fullgraph=True)(x)
    assert "autograd_function_apply" in calls and not any("conv2d" in call for call in calls)


def test_it_can_be_copied_and_frozen():
    layer = copy.deepcopy(DepthwiseConv2d(4, 3)).requires_grad_(False)
    x = torch.randn(1, 4, 3, 3, requires_grad=True)
    layer(x).sum().backward()
    assert layer.weight.grad is None and x.grad is not None


def test_an_even_kernel_is_refused():
    with pytest.raises(ModelError, match="kernel_size=4 of a depthwise convolution must be odd"):
        DepthwiseConv2d(8, 4)
