"""The local Lipschitz constant against the SVD of the full Jacobian."""

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import models
from stability import StabilityError, local_lipschitz

SWIN = {"img_size": 14, "patch_size": 2, "embed_dim": 8, "depths": (1,), "num_heads": (2,)}
# The map of the last stage has a single token.
CSWIN = {"img_size": 32, "embed_dim": 8, "depths": (1,) * 4, "num_heads": (2,) * 4, "stripes": (1, 2, 1, 1)}
VIT = {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 2}
MODELS = {
    "released swin": ("lipsformer_swin_tiny", SWIN),
    "certified swin": ("lipsformer_swin_tiny", SWIN | {"attention": "certified"}),
    "released cswin": ("lipsformer_cswin_tiny", CSWIN),
    "cswin": ("cswin_tiny", CSWIN),
    "vit": ("vit_tiny_patch16_224", VIT),
}


def exact(model: nn.Module, x: Tensor) -> Tensor:
    """σ₁ of each image's full Jacobian."""
    with sdpa_kernel(SDPBackend.MATH):
        matrices = [torch.autograd.functional.jacobian(model.eval(), image[None])[0].flatten(1) for image in x]
    return torch.stack([torch.linalg.matrix_norm(matrix, 2) for matrix in matrices])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", MODELS)
def test_it_equals_the_svd_of_the_full_jacobian(kind, dtype):
    torch.manual_seed(0)
    name, options = MODELS[kind]
    model = timm.create_model(name, num_classes=6, drop_path_rate=0.5, **options).to(dtype)
    x = torch.randn(2, 3, options["img_size"], options["img_size"], dtype=dtype)
    measured = local_lipschitz(model, x, max_iterations=1000)
    assert measured.dtype == dtype and measured.shape == (2,)
    torch.testing.assert_close(measured, exact(model, x), rtol=2e-3, atol=0)


def test_each_image_has_its_own_value():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False), nn.ReLU())
    model[1].weight.data = torch.tensor([[5.0, 0, 0, 0], [0, 3, 0, 0], [0, 0, 1, 0]])
    x = torch.tensor([[1.0, 1, 1, 1], [-1, 1, 1, 1], [-1, -1, 1, 1], [-1, -1, -1, 1]]).view(4, 1, 2, 2)
    torch.testing.assert_close(local_lipschitz(model, x), torch.tensor([5.0, 3.0, 1.0, 0.0]))


def test_it_is_repeatable_and_no_direction_is_steeper():
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 5)).double()
    x = torch.randn(3, 6, dtype=torch.float64)
    first = local_lipschitz(model, x)
    torch.manual_seed(123)
    assert torch.equal(first, local_lipschitz(model, x))
    direction = torch.randn_like(x)
    moved = (model(x + 1e-6 * direction) - model(x)).norm(dim=1) / (1e-6 * direction.norm(dim=1))
    assert (moved <= first * 1.001).all()


def test_an_output_that_ignores_the_input_has_the_constant_zero():
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ones(len(x), 3)

    assert local_lipschitz(Constant(), torch.randn(2, 4)).tolist() == [0, 0]


@torch.no_grad()
def test_modes_parameters_and_gradients_do_not_change():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    model[1].eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(3, 4)
    first = local_lipschitz(model, x)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters()) and not x.requires_grad
    torch.testing.assert_close(first, exact(model, x), rtol=1e-3, atol=0)


def test_modes_are_restored_after_an_error():
    model = timm.create_model("lipsformer_swin_tiny", **SWIN)
    with pytest.raises(models.ModelError, match="takes images of"):
        local_lipschitz(model, torch.randn(2, 3, 15, 15))
    assert all(module.training for module in model.modules())


def test_too_few_iterations_give_a_value_that_is_too_low_and_a_warning():
    model = nn.Linear(20, 20)
    with pytest.warns(UserWarning, match="not converged after 2 iterations"):
        early = local_lipschitz(model, torch.randn(1, 20), max_iterations=2)
    assert 0 < early.item() < torch.linalg.matrix_norm(model.weight, 2).item()


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (nn.Linear(4, 4), torch.zeros(2, 4, dtype=torch.long), r"needs a batch .* got torch.int64 of shape \(2, 4\)"),
        (nn.Linear(4, 4), torch.zeros(4), r"needs a batch .* got torch.float32 of shape \(4,\)"),
        (nn.Flatten(0), torch.zeros(2, 4), r"one output for each of 2 inputs, got torch.float32 of shape \(8,\)"),
        (nn.LSTM(4, 4), torch.zeros(2, 4), "one output for each of 2 inputs, got tuple"),
    ],
)
def test_inputs_and_outputs_that_are_no_batch_are_refused_in_one_line(model, x, message):
    with pytest.raises(StabilityError, match=message) as error:
        local_lipschitz(model, x)
    assert "\n" not in str(error.value)
