"""The kernel as a torch operator: schema, fake tensors, gradients, compilation."""

import pytest
import torch

from models.kernels import residual_center_norm
from models.layers import ConvBranch, WeightedResidual
from tests.models.kernels.test_kernels import norm_inputs


def test_it_keeps_torch_s_rules(triton_device: torch.device):
    """Schema, gradient, fake tensors and ahead-of-time autograd, which torch.compile uses."""
    inputs = [x.to(triton_device) for x in norm_inputs((2, 2, 3, 4))]
    learned = [x.requires_grad_() if x.ndim != 1 else x for x in inputs]
    torch.library.opcheck(torch.ops.coldstart.residual_center_norm.default, tuple(learned), atol=1e-5, rtol=1e-5)


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


def test_strided_maps_are_copied_first(triton_device: torch.device):
    x, *others = (tensor.to(triton_device) for tensor in norm_inputs((2, 2, 3, 4)))
    turned = x.permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3)
    assert not turned.is_contiguous()
    torch.testing.assert_close(residual_center_norm(turned, *others), residual_center_norm(x, *others))
