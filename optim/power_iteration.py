"""Largest singular values of many matrices of one shape at once, by subspace iteration from vectors that are kept."""

from typing import Any

import torch
from torch import Tensor

Matrices = Tensor | list[Tensor]  # (count, rows, columns), or large ones of one shape, which need not lie together

# Vectors kept for a matrix. Two were seen to lose 15 % of an update that changes fast, and 5 % of a weight; six, 0.2 %
# and 0.04 %, for a twentieth more time.
CPU_VECTORS = 6
# Elsewhere two, whose rotation has a closed form: a library's eigenvectors would wait for the GPU.
VECTORS = 2
# Entries of a matrix from which on oneDNN's product of few rows with it is worth a call of its own.
LARGE = 2**18
# MKL, which torch.bmm calls, reads a matrix once for every row it multiplies; oneDNN's linear layer, once. torch has no
# public function that calls it for plain float32 tensors.
_ONEDNN: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
_PLAIN: tuple[Any, ...] = (None, "none", [], "")  # neither bias nor activation


def gathered(matrices: list[Tensor]) -> Matrices:
    """Matrices of one shape as :func:`iterate` takes them: copied into one tensor, unless they are large."""
    return matrices if _is_large(matrices) else torch.stack(matrices)


def start_blocks(matrices: Matrices, vectors: int) -> Tensor:
    """Orthogonal unit vectors to start from: ``(count, k, columns)`` in float32, k the rank at most.

    They are a function of the shape alone, so that neither the order of layers nor a seed changes an optimizer.

    Args:
        matrices: ``count`` times ``(rows, columns)``.
        vectors: wanted for each matrix.
    """
    rows, columns = matrices[0].shape
    generator = torch.Generator().manual_seed(columns)
    block = torch.randn(1, min(vectors, rows, columns), columns, generator=generator)
    return torch.linalg.qr(block.mT).Q.mT.repeat(len(matrices), 1, 1).to(matrices[0].device)


def iterate(matrices: Matrices, blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Estimate the largest singular values, which errs low, by one product with MᵀM.

    One vector for each matrix, kept from before, is almost orthogonal to the one it should find once the second
    singular value has overtaken the first, and stays far off for many steps. So there are several, and each iteration
    turns them to the directions of their subspace that the matrix stretches most (Rayleigh and Ritz).

    Args:
        matrices: ``count`` times ``(rows, columns)``, float32.
        blocks: ``(count, k, columns)``, orthogonal vectors of length 1, estimates of right singular vectors.

    Returns:
        Singular values ``(count,)``; by which share the iteration raised them; the next blocks, which are not yet
        orthogonal: see :func:`orthonormal`.
    """
    tiny = torch.finfo(blocks.dtype).tiny
    images = _images(blocks, matrices)
    turns = _turns(torch.bmm(images, images.mT))
    images, turned = torch.bmm(turns, images), torch.bmm(turns, blocks)
    products = _products(images, matrices)
    before = torch.linalg.vector_norm(images[:, 0], dim=1).clamp_min(tiny)
    length = torch.linalg.vector_norm(products[:, 0], dim=1)
    values = length / before
    # A trace of the vectors themselves, for a matrix that maps some of them to nothing.
    return values, values / before, torch.add(turned, products / length.clamp_min(tiny)[:, None, None], alpha=1e3)


def converge(matrices: Matrices, tolerance: float = 1e-4, most: int = 500) -> tuple[Tensor, Tensor]:
    """Singular values ``(count,)`` and blocks of vectors once ten iterations raise no value by more than ``tolerance``.

    Without any gap between singular values, as at the edge of a random matrix's spectrum, the value after k iterations
    of one vector is low by about 3/(8k), so ten raise it by less than 1e-4 once it is within 0.2 %.
    """
    blocks = start_blocks(matrices, vectors_for(matrices))
    values = blocks.new_zeros(len(matrices))
    for _ in range(most // 10):
        before = values
        for _ in range(10):
            values, _, blocks = iterate(matrices, blocks)
            blocks = orthonormal(blocks)
        if (values <= before * (1 + tolerance)).all():
            break
    return values, blocks


def vectors_for(matrices: Matrices, capturable: bool = False) -> int:
    """How many vectors to keep for matrices on this device; graphs cannot hold a library's eigenvectors either."""
    return VECTORS if capturable or matrices[0].device.type != "cpu" else CPU_VECTORS


def _turns(gram: Tensor) -> Tensor:
    """The rotations ``(count, k, k)`` that make Gram matrices of that shape diagonal, the largest entry first."""
    if gram.shape[1] != 2:
        # Of a matrix that is not finite the values come out as such; LAPACK would end the run instead.
        return torch.linalg.eigh(gram.nan_to_num(0, 0, 0)).eigenvectors.flip(2).mT
    angle = torch.atan2(2 * gram[:, 0, 1], gram[:, 0, 0] - gram[:, 1, 1]) / 2
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos, sin, -sin, cos], dim=1).view(-1, 2, 2)


def orthonormal(rows: Tensor) -> Tensor:
    """Rows ``(count, k, columns)`` made orthogonal, the first first, and of length 1."""
    if rows.shape[1] != 2:
        return torch.linalg.qr(rows.mT).Q.mT.contiguous()
    first = _unit(rows[:, :1])
    return torch.cat([first, _unit(rows[:, 1:] - (rows[:, 1:] * first).sum(2, keepdim=True) * first)], dim=1)


def _unit(vectors: Tensor) -> Tensor:
    """To length 1 along the last dimension, zero to zero."""
    return vectors / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True).clamp_min(torch.finfo(vectors.dtype).tiny)


def _images(rows: Tensor, matrices: Matrices) -> Tensor:
    """Rows ``(count, k, columns)`` mapped by their matrix: ``(count, k, rows)``."""
    if isinstance(matrices, Tensor):
        return torch.bmm(rows, matrices.mT)
    return torch.stack([_ONEDNN(row, matrix, *_PLAIN) for row, matrix in zip(rows, matrices, strict=True)])


def _products(rows: Tensor, matrices: Matrices) -> Tensor:
    """Rows ``(count, k, rows)`` mapped by their matrix's transpose: ``(count, k, columns)``."""
    if isinstance(matrices, Tensor):
        return torch.bmm(rows, matrices)
    return torch.stack([_ONEDNN(row, matrix.mT, *_PLAIN) for row, matrix in zip(rows, matrices, strict=True)])


def _is_large(matrices: list[Tensor]) -> bool:
    return _ONEDNN is not None and matrices[0].device.type == "cpu" and matrices[0].numel() >= LARGE
