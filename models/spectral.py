"""Spectral initialisation: every weight matrix starts with largest singular value 1 (LipsFormer, section 4.2)."""

import torch
from torch import Tensor, nn


def largest_singular_value(weight: Tensor) -> Tensor:
    """The exact largest singular value of ``weight`` as a matrix ``(out, -1)``, a float64 scalar.

    It is the square root of the largest eigenvalue of the smaller Gram matrix. This is much cheaper than an SVD, and in
    float64 it is exact enough for any float32 weight.
    """
    matrix = weight.detach().flatten(1).double()
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    return torch.linalg.eigvalsh(gram)[-1].clamp_min(0).sqrt()


@torch.no_grad()
def spectral_init_(module: nn.Module) -> None:
    """Initialise as :func:`xavier_init_`, then divide each weight by its largest singular value.

    The weight of a convolution is the matrix ``weight.reshape(out, -1)``. A fused qkv weight is one matrix.
    """
    xavier_init_(module)
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and not layer.weight.is_meta:
            layer.weight.div_(largest_singular_value(layer.weight).to(layer.weight.dtype))


def xavier_init_(module: nn.Module) -> None:
    """Draw the weights of every Linear and Conv2d in ``module`` from Xavier's normal distribution.

    Biases of Linear layers become 0; biases of convolutions keep PyTorch's default, as in the released code.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.xavier_normal_(layer.weight)
            if isinstance(layer, nn.Linear) and layer.bias is not None:
                nn.init.zeros_(layer.bias)
