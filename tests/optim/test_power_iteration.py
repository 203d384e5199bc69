"""Power iteration gives an SVD's values, also if they are equal, cross, or are zero."""

import pytest
import torch
from torch import Tensor, nn

from optim import SpectralNorms, param_groups, power_iteration
from optim.power_iteration import FIRST_ITERATIONS, VECTORS, iterate, start_vectors


def iterations(matrices: Tensor, vectors: Tensor, count: int) -> tuple[Tensor, Tensor]:
    for _ in range(count):
        (values,), (vectors,) = iterate([matrices], [vectors])
    return values, vectors


def start(matrices: Tensor) -> Tensor:
    return start_vectors(len(matrices), matrices.shape[2], matrices.device)


def exact(matrices: Tensor) -> Tensor:
    return torch.linalg.svdvals(matrices)[:, 0]


def test_it_finds_what_an_svd_finds_in_stacks_of_any_shape():
    stacks = [torch.randn(5, 30, 20), torch.randn(1, 300, 200), torch.randn(2, 4, 9)]
    vectors = [start(stack) for stack in stacks]
    for _ in range(FIRST_ITERATIONS):
        values, vectors = iterate(stacks, vectors)
    for found, stack in zip(values, stacks, strict=True):
        assert (found <= exact(stack) * (1 + 1e-5)).all() and (found >= exact(stack) * 0.998).all()
    for _ in range(100):
        values, vectors = iterate(stacks, vectors)
    # If several directions have almost the same singular value, their mean is at most 0.05 % too low.
    assert all(torch.allclose(v, exact(stack), rtol=5e-4) for v, stack in zip(values, stacks, strict=True))


@pytest.mark.parametrize("rank", [0, 1, 2, 5])
def test_matrices_of_low_rank_have_values_and_keep_their_vectors_apart(rank):
    matrices = torch.randn(3, 6, rank) @ torch.randn(3, rank, 8)
    values, vectors = iterations(matrices, start(matrices), 60)
    assert torch.allclose(values, exact(matrices), rtol=1e-4)
    assert torch.allclose(vectors @ vectors.mT, torch.eye(VECTORS).expand(3, VECTORS, VECTORS), atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 7), (7, 1), (3, 3), (2, 9), (9, 2)])
def test_no_more_vectors_than_a_small_matrix_has_columns(shape):
    matrices = torch.randn(2, *shape)
    values, vectors = iterations(matrices, start(matrices), 60)
    assert torch.allclose(values, exact(matrices), rtol=1e-4)
    count = min(VECTORS, shape[1])
    assert torch.allclose(vectors.norm(dim=2)[:, :count], torch.ones(2, count), atol=1e-4)
    assert not vectors[:, count:].any()


def test_further_vectors_follow_singular_values_that_cross(monkeypatch):
    """The largest singular value changes to another direction. A single vector is then wrong for many steps."""
    left, right = torch.linalg.qr(torch.randn(8, 2)).Q, torch.linalg.qr(torch.randn(6, 2)).Q
    worst = {}
    for count in (VECTORS, 1):
        monkeypatch.setattr(power_iteration, "VECTORS", count)
        vectors, errors = start(torch.zeros(1, 8, 6)), []
        for step in range(60):
            values = torch.tensor([1.0, 0.5 + step / 40])
            found, vectors = iterations((left @ values.diag() @ right.T)[None], vectors, 1)
            errors.append((1 - found / values.max()).item())
        worst[count] = max(errors[11:])
    assert worst[VECTORS] < 1e-3 < 0.05 < worst[1]


@pytest.mark.parametrize("scale", [1e-8, 1e-4, 1e4, 1e8])
def test_the_scale_of_a_matrix_does_not_matter(scale):
    matrices = torch.randn(2, 30, 20)
    plain, _ = iterations(matrices, start(matrices), 10)
    scaled, _ = iterations(scale * matrices, start(matrices), 10)
    assert torch.allclose(scaled, scale * plain, rtol=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 3e38])
def test_a_matrix_that_is_not_finite_stops_nobody_and_spoils_no_other(bad):
    matrices = torch.randn(3, 9, 8)
    good = iterations(matrices, start(matrices), 3)[0]
    matrices[1, 2, 3] = bad
    values = iterations(matrices, start(matrices), 3)[0]
    assert not 0 <= values[1] < 1e19 and torch.equal(values[[0, 2]], good[[0, 2]])


@pytest.mark.parametrize("allowed", ["highest", "high", "medium"])
def test_products_have_all_digits_whatever_is_allowed_elsewhere(allowed, monkeypatch):
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    bmm, seen = torch.bmm, set()

    def watched(*matrices: Tensor) -> Tensor:
        seen.add(tuple(backend.fp32_precision for backend in backends))
        return bmm(*matrices)

    monkeypatch.setattr(torch, "bmm", watched)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(allowed)
    try:
        SpectralNorms(torch.optim.SGD(param_groups(nn.Linear(5, 4)), lr=0.1))()
        assert torch.get_float32_matmul_precision() == allowed
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == {("ieee", "ieee")}
