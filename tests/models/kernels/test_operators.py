"""The kernels as torch operators: schemas, fake tensors, gradients, compilation."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from models.kernels import choice, operators
from models.layers import ConvBranch, WeightedResidual
from tests.models.kernels.test_kernels import convolution_inputs, norm_inputs

INPUTS = {
    "depthwise_gelu": convolution_inputs((2, 2, 3, 4), 3, residual=False),
    "depthwise_gelu_residual": convolution_inputs((2, 2, 3, 4), 3, residual=True),
    "residual_center_norm": norm_inputs((2, 2, 3, 4)),
}


@pytest.mark.parametrize("name", INPUTS)
def test_an_operator_keeps_torch_s_rules(name: str, triton_device: torch.device):
    """Schema, gradient, fake tensors and ahead-of-time autograd, which torch.compile uses."""
    inputs = [x.to(triton_device) if isinstance(x, torch.Tensor) else x for x in INPUTS[name]]
    learned = [x.requires_grad_() if isinstance(x, torch.Tensor) and x.ndim != 1 else x for x in inputs]
    torch.library.opcheck(getattr(torch.ops.coldstart, name).default, tuple(learned), atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_residuals_give_the_gradients_of_eager_ones(triton_device: torch.device):
    torch.manual_seed(0)
    block = WeightedResidual(ConvBranch(4, pointwise=False, kernel_size=3), 4, 0.5).to(triton_device)
    block.kernels = "triton"
    weight, bias = torch.ones(4, device=triton_device), torch.zeros(4, device=triton_device)
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    results = []
    for run in (block, compiled):
        x = torch.arange(48.0, device=triton_device).reshape(2, 2, 3, 4).cos().requires_grad_()
        run(x, weight, bias).square().sum().backward()
        results.append([x.grad, *(p.grad.clone() for p in block.parameters())])
        block.zero_grad()
    for eager, traced in zip(*results, strict=True):
        torch.testing.assert_close(eager, traced)


def test_the_choice_breaks_no_compiled_graph_and_is_measured_once(monkeypatch: pytest.MonkeyPatch):
    """As on a GPU: ``auto`` asks whether Triton suits the device, and whether it is faster."""
    measured = []

    def is_faster(*shape_and_so_on) -> bool:
        torch.Generator().manual_seed(0)  # nothing that the compiler could trace
        return not measured.append(shape_and_so_on)

    monkeypatch.setattr(choice, "_suits_triton", lambda device: True)
    monkeypatch.setattr(choice, "_is_faster", is_faster)
    branch = ConvBranch(4, pointwise=True, kernel_size=3)
    counter = CompileCounter()
    compiled = torch.compile(branch, backend=counter, fullgraph=True, dynamic=False)
    for _ in range(3):
        compiled(torch.ones(2, 2, 3, 4))
    assert counter.frame_count == 1 and len(measured) == 1
    assert measured[0] == ("depthwise_gelu", (2, 2, 3, 4), torch.float32, torch.device("cpu"), 3)


def test_gradients_have_the_strides_that_the_compiler_expects(triton_device: torch.device):
    x, weight, bias = (tensor.to(triton_device) for tensor in INPUTS["depthwise_gelu"])
    gradients = operators._depthwise_gelu_backward(torch.ones_like(x), x, weight, bias)
    assert all(gradient.is_contiguous() for gradient in gradients)


def test_a_strided_input_is_copied_first(triton_device: torch.device):
    x, weight, bias = (tensor.to(triton_device) for tensor in INPUTS["depthwise_gelu"])
    turned = x.permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3)
    assert not turned.is_contiguous()
    torch.testing.assert_close(
        operators.depthwise_gelu(turned, weight, bias), operators.depthwise_gelu(x, weight, bias)
    )
