"""Estimate the largest singular values of many matrices at once, by subspace iteration with a few vectors per matrix.

One vector per matrix is not enough. When the second singular value grows larger than the first, this vector is almost
orthogonal to the singular vector it should find, and its estimate stays wrong for many steps. So each matrix M keeps
VECTORS vectors, the rows of V. An iteration multiplies them by M and its transpose: Y = VMᵀ and Z = YM. This turns them
towards the directions that M stretches most.

The products with M run once per shape. All other work uses small square matrices of inner products, which are stacked
for all matrices together. Nothing is read back to the host.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

# In training, the worst error of σ₁ of an update after one iteration was 11 % with four vectors, and 5 % with six.
VECTORS = 6
# Weight of the old vectors in the new ones. It keeps the new vectors distinct in float32, even if the matrix maps many
# vectors to almost the same one, or to zero.
KEPT = 1e-2
FIRST_ITERATIONS = 32  # from random vectors; for random matrices the values are then at most 0.2 % too low

Name = TypeVar("Name")


def matrices_of(parameter: Tensor, splits: int) -> Tensor:
    """Return the matrices in a parameter, ``(splits, rows, columns)``: one, or ``splits`` on top of each other.

    All dimensions after the first count as columns.
    """
    return parameter.reshape(splits, -1, parameter[0].numel())


def start_vectors(count: int, columns: int, device: torch.device) -> Tensor:
    """Return starting vectors ``(count, VECTORS, columns)``, float32. They are random, so they are almost orthogonal.

    They depend only on the number of columns, so neither the order of layers nor a seed changes the optimizer.
    """
    generator = torch.Generator().manual_seed(columns)
    drawn = torch.randn(VECTORS, columns, dtype=torch.float32, generator=generator) / columns**0.5
    return drawn.to(device).repeat(count, 1, 1)


def iterate(matrices: list[Tensor], vectors: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Estimate the largest singular values, and turn the vectors towards the singular vectors.

    The estimate is ‖yM‖ / ‖y‖, where y is the dominant combination of Y's rows (a Rayleigh-Ritz step). A high power of
    YYᵀ gives the weights of this combination, so no eigenvectors are computed. The estimate never exceeds σ₁.

    Args:
        matrices: stacks of matrices, ``(count, rows, columns)`` each, float32.
        vectors: for each stack ``(count, VECTORS, columns)``, with orthonormal rows.

    Returns:
        For each stack the singular values ``(count,)``, and the next vectors.
    """
    counts = [len(stack) for stack in matrices]
    tiny = torch.finfo(torch.float32).tiny
    with _full_precision():
        y_t = [torch.bmm(stack, old.mT) for stack, old in zip(matrices, vectors, strict=True)]  # Yᵀ
        y = [transposed.mT for transposed in y_t]
        z = [torch.bmm(image, stack) for image, stack in zip(y, matrices, strict=True)]
        yy = torch.cat([torch.bmm(*pair) for pair in zip(y, y_t, strict=True)])  # YYᵀ
        zz = torch.cat([torch.bmm(product, product.mT) for product in z])  # ZZᵀ
        weights = _power(yy)
        squares = (weights * zz).sum((1, 2)) / (weights * yy).sum((1, 2)).clamp_min(tiny)  # σ₁²
        scales = (KEPT * squares.clamp_min(tiny**0.5))[:, None, None].split(counts)
        mixed = [torch.addcdiv(*three) for three in zip(vectors, z, scales, strict=True)]  # V + Z / (KEPT·σ₁²)
        turns = _gram_schmidt(torch.cat([torch.bmm(mix, mix.mT) for mix in mixed]))
        following = [torch.bmm(turn, mix) for turn, mix in zip(turns.split(counts), mixed, strict=True)]
    return list(squares.sqrt().split(counts)), following


def estimate(
    matrices: Mapping[Name, Tensor], vectors: Mapping[Name, Tensor], iterations: int
) -> tuple[dict[Name, Tensor], dict[Name, Tensor]]:
    """Estimate the largest singular values of matrices of any shapes; those of one shape are stacked.

    Args:
        matrices: by name, ``(count, rows, columns)`` each, all on one device.
        vectors: by the same names, ``(count, VECTORS, columns)``, with orthonormal rows.
        iterations: how often to call :func:`iterate`.

    Returns:
        By name the singular values ``(count,)``, and the next vectors.
    """
    shapes: dict[torch.Size, list[Name]] = defaultdict(list)
    for name, stack in matrices.items():
        shapes[stack.shape[1:]].append(name)
    stacks = [torch.cat([matrices[name].float() for name in names]) for names in shapes.values()]
    turned = [torch.cat([vectors[name] for name in names]) for names in shapes.values()]
    for _ in range(iterations):
        values, turned = iterate(stacks, turned)
    sizes: dict[Name, Tensor] = {}
    following: dict[Name, Tensor] = {}
    for names, values_of_shape, vectors_of_shape in zip(shapes.values(), values, turned, strict=True):
        counts = [len(matrices[name]) for name in names]
        sizes |= dict(zip(names, values_of_shape.split(counts), strict=True))
        following |= dict(zip(names, vectors_of_shape.split(counts), strict=True))
    return sizes, following


def _power(gram: Tensor) -> Tensor:
    """Return the 256th power of symmetric matrices, up to a factor."""
    for step in range(8):
        if step % 4 == 0:  # normalise, so that the 16th power fits into float32
            gram = gram / torch.linalg.vector_norm(gram, dim=(1, 2), keepdim=True).clamp_min(1e-30)
        gram = torch.bmm(gram, gram)
    return gram


def _gram_schmidt(gram: Tensor) -> Tensor:
    """Return lower triangular T ``(count, k, k)`` such that TX has orthonormal rows. Only the Gram matrix XXᵀ is given.

    A row becomes zero if less than length 0.1 is left after removing its projection on the rows before it. Such a short
    rest may be only rounding error.
    """
    turns = torch.zeros_like(gram)
    unit = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    for i in range(gram.shape[1]):
        overlaps = torch.bmm(gram[:, i : i + 1], turns.mT)
        row = unit[i] - torch.bmm(overlaps, turns)
        square = torch.bmm(torch.bmm(row, gram), row.mT)
        turns[:, i : i + 1] = torch.where(square > 0.01, row * square.rsqrt(), 0)
    return turns


@contextmanager
def _full_precision() -> Iterator[None]:
    """Compute products in full float32 precision, even if the user allows TF32 for the network."""
    backends: Any = torch.backends
    gpu, cpu = backends.cuda.matmul, backends.mkldnn.matmul
    before = gpu.fp32_precision, cpu.fp32_precision
    gpu.fp32_precision = cpu.fp32_precision = "ieee"
    try:
        yield
    finally:
        gpu.fp32_precision, cpu.fp32_precision = before
