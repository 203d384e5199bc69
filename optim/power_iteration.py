"""Largest singular values of many matrices of one shape at once, by power iteration from vectors kept between calls."""

import torch
from torch import Tensor

LARGE = 2**18  # entries of a matrix that is worth a second thread


def start_pairs(count: int, columns: int, like: Tensor) -> Tensor:
    """Pairs of orthogonal unit vectors to start from: ``(count, 2, columns)`` in float32 on the device of ``like``.

    They are a function of the shape alone, so that neither the order of layers nor a seed changes an optimizer.
    """
    generator = torch.Generator().manual_seed(columns)
    first, second = torch.randn(2, columns, generator=generator)
    first = _unit(first)
    pair = torch.stack([first, _unit(second - (second @ first) * first)])
    return pair.repeat(count, 1, 1).to(like.device)


def iterate(matrices: Tensor, vectors: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Estimate the largest singular values, which errs low.

    Args:
        matrices: ``(count, rows, columns)``, float32.
        vectors: ``(count, columns)``, estimates of the right singular vectors, of length 1.
        iterations: products with MᵀM, at least 1.

    Returns:
        Singular values ``(count,)`` and the next estimates ``(count, columns)``; a zero matrix keeps its vector.
    """
    rows = vectors.unsqueeze(1)  # rows, not columns: on CPUs such products are up to 20 times faster
    tiny = torch.finfo(matrices.dtype).tiny
    for _ in range(iterations):
        left = _images(rows, matrices)
        right = _products(left, matrices)
        length = torch.linalg.vector_norm(right, dim=2, keepdim=True).clamp_min(tiny)
        rows = right / length
    values = (length / torch.linalg.vector_norm(left, dim=2, keepdim=True).clamp_min(tiny)).flatten()
    is_zero = length <= tiny
    return values.masked_fill(is_zero.flatten(), 0), torch.where(is_zero, vectors.unsqueeze(1), rows).squeeze(1)


def iterate_pairs(
    matrices: Tensor, pairs: Tensor, iterations: int, tolerance: float | None = None
) -> tuple[Tensor, Tensor]:
    """:func:`iterate` for matrices that change fast, with a second vector for each.

    Where the second singular value overtakes the first, a single vector kept from before is almost orthogonal to the
    one it should find, and stays far off for many steps. Two vectors (subspace iteration) turn to the best and the
    worst direction of their plane.

    Args:
        matrices: ``(count, rows, columns)``, float32.
        pairs: ``(count, 2, columns)``, orthogonal vectors of length 1.
        iterations: products with MᵀM, at least 1.
        tolerance: stop before that once the iteration raised no value by more than this share, which waits for the
            device to know; None: never.

    Returns:
        Singular values ``(count,)`` and the next pairs.
    """
    tiny = torch.finfo(matrices.dtype).tiny
    for _ in range(iterations):
        images = _images(pairs, matrices)
        turn = _turn(torch.bmm(images, images.mT))
        images, turned = torch.bmm(turn, images), torch.bmm(turn, pairs)
        products = _products(images, matrices)
        before = torch.linalg.vector_norm(images[:, 0], dim=1, keepdim=True)
        length = torch.linalg.vector_norm(products[:, 0], dim=1, keepdim=True)
        values = length / before.clamp_min(tiny)
        best = torch.where(length > 0, products[:, 0] / length.clamp_min(tiny), turned[:, 0])
        # A trace of the vector itself, for a matrix that maps it to nothing.
        other = products[:, 1] / length.clamp_min(tiny) + 1e-3 * turned[:, 1]
        other = _unit(other - (other * best).sum(dim=1, keepdim=True) * best)
        pairs = torch.stack([best, other], dim=1)
        if tolerance is not None and (values <= (1 + tolerance) * before).all():
            break
    return values.flatten(), pairs


def _turn(gram: Tensor) -> Tensor:
    """The rotations ``(count, 2, 2)`` that make Gram matrices of that shape diagonal, the larger entry first."""
    angle = torch.atan2(2 * gram[:, 0, 1], gram[:, 0, 0] - gram[:, 1, 1]) / 2
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos, sin, -sin, cos], dim=1).view(-1, 2, 2)


def converge(matrices: Tensor, tolerance: float = 1e-4, most: int = 500) -> tuple[Tensor, Tensor]:
    """:func:`iterate` from :func:`start_pairs` until ten iterations raise no value by more than ``tolerance``.

    Without any gap between singular values, as at the edge of a random matrix's spectrum, the value after k iterations
    is low by about 3/(8k), so ten raise it by less than 1e-4 once it is within 0.2 %.
    """
    values, vectors = iterate(matrices, start_pairs(len(matrices), matrices.shape[2], matrices)[:, 0], 10)
    for _ in range(most // 10 - 1):
        before = values
        values, vectors = iterate(matrices, vectors, 10)
        if (values <= before * (1 + tolerance)).all():
            break
    return values, vectors


def _unit(vectors: Tensor) -> Tensor:
    """To length 1 along the last dimension, zero to zero."""
    return vectors / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True).clamp_min(torch.finfo(vectors.dtype).tiny)


def _images(vectors: Tensor, matrices: Tensor) -> Tensor:
    """Vectors ``(count, k, columns)`` mapped by their matrix: ``(count, k, rows)``."""
    if not _is_large(matrices):
        return torch.bmm(vectors, matrices.mT)
    halves = matrices.view(2, -1, matrices.shape[2])
    return torch.cat(torch.bmm(vectors.expand(2, -1, -1), halves.mT).split(1), dim=2)


def _products(vectors: Tensor, matrices: Tensor) -> Tensor:
    """Vectors ``(count, k, rows)`` mapped by their matrix's transpose: ``(count, k, columns)``."""
    if not _is_large(matrices):
        return torch.bmm(vectors, matrices)
    halves = matrices.view(2, -1, matrices.shape[2])
    return torch.bmm(torch.cat(vectors.chunk(2, dim=2)), halves).sum(0, keepdim=True)


def _is_large(matrices: Tensor) -> bool:
    """Whether this is one large matrix on a CPU, whose product with few vectors MKL computes on one thread only.

    Its halves are two. Not as many parts as threads: processes with other numbers of them would round otherwise.
    """
    count, rows, columns = matrices.shape
    return matrices.device.type == "cpu" and count == 1 and rows % 2 == 0 and rows * columns >= LARGE
