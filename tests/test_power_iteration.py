"""Power iteration: an SVD's values, also where they meet, cross, or are zero."""

import pytest
import torch
from torch import Tensor

from optim import power_iteration
from optim.power_iteration import converge, gathered, iterate, orthonormal, start_blocks


def iterations(matrices: Tensor, blocks: Tensor, count: int) -> tuple[Tensor, Tensor]:
    for _ in range(count):
        values, _, blocks = iterate([matrices], blocks)
        blocks = orthonormal(blocks)
    return values, blocks


def test_power_iteration_finds_what_an_svd_finds():
    torch.manual_seed(0)
    matrices = torch.randn(5, 30, 20)
    exact = torch.linalg.svdvals(matrices)[:, 0]
    values, vectors = converge([matrices])
    assert (values <= exact * (1 + 1e-5)).all() and (values >= exact * 0.999).all()
    values, _ = iterations(matrices, vectors, 100)
    assert torch.allclose(values, exact, rtol=1e-5)


@pytest.mark.parametrize("vectors", [2, 4])
@pytest.mark.parametrize("rank", [0, 1, 2, 5])
def test_matrices_of_low_rank_have_values_and_keep_their_vectors_apart(rank, vectors):
    torch.manual_seed(0)
    matrices = torch.randn(3, 6, rank) @ torch.randn(3, rank, 5)
    blocks = start_blocks([matrices], vectors)
    values, blocks = iterations(matrices, blocks, 60)
    assert torch.allclose(values, torch.linalg.svdvals(matrices)[:, 0], rtol=1e-4)
    assert torch.allclose(blocks @ blocks.mT, torch.eye(vectors).expand(3, vectors, vectors), atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 7), (7, 1), (3, 3), (2, 9)])
def test_no_more_vectors_than_a_small_matrix_has_directions(shape):
    torch.manual_seed(0)
    matrices = torch.randn(2, *shape)
    values, blocks = iterations(matrices, start_blocks([matrices], 4), 60)
    assert blocks.shape == (2, min(shape), shape[1])
    assert torch.allclose(values, torch.linalg.svdvals(matrices)[:, 0], rtol=1e-4)


@pytest.mark.parametrize("vectors", [2, 4])
def test_further_vectors_follow_singular_values_that_cross(vectors):
    """Two directions take turns in being the largest, where a single vector is lost for many steps."""
    torch.manual_seed(0)
    left, right = torch.linalg.qr(torch.randn(8, 2)).Q, torch.linalg.qr(torch.randn(6, 2)).Q
    blocks, single = (start_blocks([torch.zeros(1, 8, 6)], k) for k in (vectors, 1))
    worst, worst_single = 0.0, 0.0
    for step in range(60):
        values = torch.tensor([1.0, 0.5 + step / 40])
        matrix = (left @ values.diag() @ right.T).unsqueeze(0)
        found, blocks = iterations(matrix, blocks, 1)
        alone, single = iterations(matrix, single, 1)
        if step > 10:
            worst = max(worst, (1 - found / values.max()).item())
            worst_single = max(worst_single, (1 - alone / values.max()).item())
    assert worst < 1e-3 < 0.05 < worst_single


def test_large_matrices_are_multiplied_one_by_one_with_the_same_results(monkeypatch):
    torch.manual_seed(0)
    matrices = torch.randn(3, 40, 30)
    blocks = start_blocks([matrices], 4)
    together = iterate(gathered(list(matrices)), blocks)
    monkeypatch.setattr(power_iteration, "LARGE", 100)
    apart = gathered(list(matrices))
    assert len(apart) == 3
    for a, b in zip(together[:2], iterate(apart, blocks)[:2], strict=True):
        assert torch.allclose(a, b, rtol=1e-5)


def test_how_much_an_iteration_raised_a_value_is_told():
    matrices = torch.diag(torch.tensor([3.0, 1.0])).unsqueeze(0)
    values, gains, _ = iterate([matrices], torch.tensor([[[0.6, 0.8]]]))
    before = (1.8**2 + 0.8**2) ** 0.5
    assert torch.allclose(values * 1.0, torch.tensor([(5.4**2 + 0.8**2) ** 0.5 / before]))
    assert torch.allclose(gains, values / before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 3e38])
def test_a_matrix_that_is_not_finite_stops_nobody_and_spoils_no_other(bad):
    torch.manual_seed(0)
    matrices = torch.randn(3, 9, 8)
    blocks = start_blocks([matrices], 6)
    good = iterations(matrices, blocks, 3)[0]
    matrices[1, 2, 3] = bad
    values = iterations(matrices, blocks, 3)[0]
    assert not 0 <= values[1] < 1e19 and torch.equal(values[[0, 2]], good[[0, 2]])
