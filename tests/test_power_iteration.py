"""Power iteration: an SVD's values, also where they meet, cross, or are zero."""

import pytest
import torch

from optim.power_iteration import converge, iterate, iterate_pairs, start_pairs


def test_power_iteration_finds_what_an_svd_finds():
    torch.manual_seed(0)
    matrices = torch.randn(5, 30, 20)
    exact = torch.linalg.svdvals(matrices)[:, 0]
    values, vectors = converge(matrices)
    assert (values <= exact * (1 + 1e-5)).all() and (values >= exact * 0.995).all()
    values, _ = iterate(matrices, vectors, 300)
    assert torch.allclose(values, exact, rtol=1e-5)


@pytest.mark.parametrize(("rank", "iterations"), [(0, 1), (0, 3), (1, 1), (1, 3), (2, 1), (5, 3)])
def test_matrices_of_low_rank_have_values_and_keep_their_vectors_apart(rank, iterations):
    torch.manual_seed(0)
    matrices = torch.randn(3, 6, rank) @ torch.randn(3, rank, 5)
    pairs = start_pairs(3, 5, matrices)
    for _ in range(60):
        values, pairs = iterate_pairs(matrices, pairs, iterations)
    assert torch.allclose(values, torch.linalg.svdvals(matrices)[:, 0], rtol=1e-4)
    assert torch.allclose(pairs @ pairs.mT, torch.eye(2).expand(3, 2, 2), atol=1e-4)
    if rank == 0:
        values, kept = iterate(matrices, pairs[:, 0], 3)
        assert torch.equal(kept, pairs[:, 0]) and (values == 0).all()


def test_a_second_vector_follows_singular_values_that_cross():
    """Two directions take turns in being the largest."""
    left, right = torch.linalg.qr(torch.randn(8, 2)).Q, torch.linalg.qr(torch.randn(6, 2)).Q
    pairs, single = start_pairs(1, 6, left), start_pairs(1, 6, left)[:, 0]
    worst, worst_single = 0.0, 0.0
    for step in range(60):
        values = torch.tensor([1.0, 0.5 + step / 40])
        matrix = (left @ values.diag() @ right.T).unsqueeze(0)
        found, pairs = iterate_pairs(matrix, pairs, 1)
        alone, single = iterate(matrix, single, 1)
        if step > 10:
            worst = max(worst, (1 - found / values.max()).item())
            worst_single = max(worst_single, (1 - alone / values.max()).item())
    assert worst < 1e-3 < 0.05 < worst_single
