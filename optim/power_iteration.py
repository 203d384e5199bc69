"""Largest singular values of many matrices of one shape at once, by subspace iteration from vectors that are kept."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

Matrices = list[Tensor]  # (some, rows, columns) each, one after another: what need not lie together is not copied

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
    """Matrices ``(rows, columns)`` of one shape as :func:`iterate` takes them: copied side by side, unless large."""
    return [matrix[None] for matrix in matrices] if _is_large(matrices[0]) else [torch.stack(matrices)]


def start_blocks(matrices: Matrices, vectors: int) -> Tensor:
    """Orthogonal unit vectors to start from: ``(count, k, columns)`` in float32, k the rank at most.

    They are a function of the shape alone, so that neither the order of layers nor a seed changes an optimizer.

    Args:
        matrices: ``count`` of them.
        vectors: wanted for each matrix.
    """
    rows, columns = matrices[0].shape[1:]
    generator = torch.Generator().manual_seed(columns)
    block = torch.randn(1, min(vectors, rows, columns), columns, generator=generator)
    return torch.linalg.qr(block.mT).Q.mT.repeat(sum(map(len, matrices)), 1, 1).to(matrices[0].device)


def iterate(matrices: Matrices, blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Estimate the largest singular values, which errs low, by one product with MᵀM.

    One vector for each matrix, kept from before, is almost orthogonal to the one it should find once the second
    singular value has overtaken the first, and stays far off for many steps. So there are several, and each iteration
    turns them to the directions of their subspace that the matrix stretches most (Rayleigh and Ritz).

    Args:
        matrices: ``count`` of them, float32.
        blocks: ``(count, k, columns)``, orthogonal vectors of length 1, estimates of right singular vectors, that of
            the largest value last.

    Returns:
        Singular values ``(count,)``; by which share the iteration raised them; the next blocks, which are not yet
        orthogonal: see :func:`orthonormal`.
    """
    tiny = torch.finfo(blocks.dtype).tiny
    images = _times(blocks, [piece.mT for piece in matrices])
    squares, turns = _ritz(torch.bmm(images, images.mT))
    products = torch.bmm(turns, _times(images, matrices))
    before = squares.sqrt().clamp_min(tiny)
    length = torch.linalg.vector_norm(products[:, -1], dim=1)
    values = length / before
    # A trace of the old vectors, for a matrix that maps some of them to nothing.
    following = torch.addcdiv(blocks, products, length.clamp_min(tiny)[:, None, None], value=1e3)
    return values, values / before, following


def converge(matrices: Matrices, tolerance: float = 1e-4, most: int = 500) -> tuple[Tensor, Tensor]:
    """Singular values ``(count,)`` and blocks of vectors once ten iterations raise no value by more than ``tolerance``.

    Without any gap between singular values, as at the edge of a random matrix's spectrum, the value after k iterations
    of one vector is low by about 3/(8k), so ten raise it by less than 1e-4 once it is within 0.2 %.
    """
    blocks = start_blocks(matrices, vectors_for(matrices[0]))
    values = blocks.new_zeros(len(blocks))
    for _ in range(most // 10):
        before = values
        for _ in range(10):
            values, _, blocks = iterate(matrices, blocks)
            blocks = orthonormal(blocks)
        if (values <= before * (1 + tolerance)).all():
            break
    return values, blocks


def orthonormal(rows: Tensor) -> Tensor:
    """Rows ``(count, k, columns)`` made orthogonal and of length 1, in the subspace they span."""
    if rows.shape[1] > 2:
        return torch.linalg.qr(rows.mT).Q.mT
    last = _unit(rows[:, -1:])
    first = rows[:, :-1]
    return torch.cat([_unit(first - (first * last).sum(2, keepdim=True) * last), last], dim=1)


def vectors_for(matrix: Tensor, capturable: bool = False) -> int:
    """How many vectors to keep for a matrix on this device; graphs cannot hold a library's eigenvectors either."""
    return VECTORS if capturable or matrix.device.type != "cpu" else CPU_VECTORS


def _ritz(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Of Gram matrices ``(count, k, k)``: the largest eigenvalue; eigenvectors as rows, its own last."""
    if gram.shape[1] > 2:
        try:
            values, vectors = torch.linalg.eigh(gram)
        except torch.linalg.LinAlgError:  # one is not finite, and its value comes out as such
            values, vectors = torch.linalg.eigh(gram.nan_to_num(0, 0, 0))
        return values[:, -1], vectors.mT
    if gram.shape[1] == 1:
        return gram[:, 0, 0], torch.ones_like(gram)
    half, mean, beside = (gram[:, 0, 0] - gram[:, 1, 1]) / 2, (gram[:, 0, 0] + gram[:, 1, 1]) / 2, gram[:, 0, 1]
    angle = torch.atan2(beside, half) / 2
    cos, sin = angle.cos(), angle.sin()
    return mean + torch.hypot(half, beside), torch.stack([-sin, cos, cos, sin], dim=1).view(-1, 2, 2)


def _unit(vectors: Tensor) -> Tensor:
    """To length 1 along the last dimension, zero to zero."""
    return vectors / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True).clamp_min(torch.finfo(vectors.dtype).tiny)


def _times(rows: Tensor, matrices: Matrices) -> Tensor:
    """Rows ``(count, k, n)`` times their matrices ``(n, m)``: ``(count, k, m)``."""
    if _is_large(matrices[0][0]):
        each = zip(rows, _each(matrices), strict=True)
        return torch.stack([_ONEDNN(row, matrix.mT, *_PLAIN) for row, matrix in each])
    parts = rows.split([len(piece) for piece in matrices])
    return torch.cat([torch.bmm(part, piece) for part, piece in zip(parts, matrices, strict=True)])


def _each(matrices: Matrices) -> Iterator[Tensor]:
    return (matrix for piece in matrices for matrix in piece)


def _is_large(matrix: Tensor) -> bool:
    return _ONEDNN is not None and matrix.device.type == "cpu" and matrix.numel() >= LARGE
