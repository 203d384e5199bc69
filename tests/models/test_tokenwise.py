"""Linear layers on tokens have the same values and gradients as PyTorch's."""

import pytest
import timm.layers
import torch
import torch.nn.functional as F
from torch import nn

from models.tokenwise import Mlp, TokenLinear


@pytest.mark.parametrize("shape", [(2, 4, 5, 6), (3, 1, 1, 6), (1, 2, 1, 6), (4, 6), (2, 3, 6)])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_equal_those_of_a_linear_layer(shape, bias):
    torch.manual_seed(0)
    layer = TokenLinear(6, 8, bias=bias)
    x = torch.randn(shape, requires_grad=True)
    y, expected = layer(x), F.linear(x, layer.weight, layer.bias)
    assert y.is_contiguous()
    torch.testing.assert_close(y, expected)
    direction = torch.randn_like(y)
    got = torch.autograd.grad(y, [x, *layer.parameters()], direction)
    wanted = torch.autograd.grad(expected, [x, *layer.parameters()], direction)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_maps_of_any_memory_layout_work():
    layer, x = TokenLinear(6, 8), torch.randn(2, 6, 4, 5).permute(0, 2, 3, 1)
    assert layer(x).is_contiguous()
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))


def test_the_mlp_has_the_parameter_names_and_values_of_timm():
    mlp, reference = Mlp(4, 16), timm.layers.Mlp(4, 16)
    reference.load_state_dict(mlp.state_dict())
    x = torch.randn(2, 3, 3, 4)
    torch.testing.assert_close(mlp(x), reference(x))
    assert isinstance(mlp.fc1, nn.Linear)
