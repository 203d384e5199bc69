"""Effective rank, entropy, energies and token diversity against direct computation."""

import math

import pytest
import torch

from stability import StabilityError, effective_rank, energy_concentration, entropy, query_key_energies, token_diversity


def test_effective_rank_counts_directions():
    orthogonal = torch.linalg.qr(torch.randn(8, 8)).Q
    assert effective_rank(orthogonal).item() == pytest.approx(8, rel=1e-4)
    assert effective_rank(orthogonal[:, :3] @ orthogonal[:3]).item() == pytest.approx(3, rel=1e-3)
    assert effective_rank(torch.zeros(2, 4, 4)).tolist() == [0, 0]
    uneven = torch.diag(torch.tensor([2.0, 1.0, 1.0]))
    expected = math.exp(-(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25)))
    assert effective_rank(uneven).item() == pytest.approx(expected, rel=1e-5)


def test_entropy_is_zero_for_one_share_and_log_n_for_equal_shares():
    assert entropy(torch.tensor([1.0, 0.0, 0.0])).item() == 0
    assert entropy(torch.full((5,), 0.2)).item() == pytest.approx(math.log(5))


@pytest.mark.parametrize(("dim", "inputs", "heads"), [(12, 12, 3), (8, 6, 1), (6, 20, 2)])
def test_query_key_energies_equal_those_of_the_full_product(dim, inputs, heads):
    w_q, w_k = torch.randn(2, dim, inputs)
    found = query_key_energies(w_q, w_k, heads)
    size = dim // heads
    for head in range(heads):
        rows = slice(head * size, (head + 1) * size)
        exact = torch.linalg.svdvals(w_q[rows].T @ w_k[rows]).square()[: min(size, inputs)]
        assert torch.allclose(found[head], exact, rtol=1e-3, atol=1e-4)


def test_energy_concentration_is_the_share_of_the_first_directions():
    energies = torch.tensor([[4.0, 3.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    assert energy_concentration(energies, 2).tolist() == pytest.approx([0.7, 1.0])
    assert energy_concentration(energies, 10).tolist() == pytest.approx([1.0, 1.0])


def test_shapes_that_differ_or_that_heads_do_not_divide_are_refused():
    with pytest.raises(StabilityError, match="5 heads divide"):
        query_key_energies(torch.randn(12, 4), torch.randn(12, 4), 5)
    with pytest.raises(StabilityError, match="must have the same shape"):
        query_key_energies(torch.randn(12, 4), torch.randn(8, 4), 4)


def test_diversity_is_one_minus_the_mean_cosine_of_pairs():
    tokens = torch.randn(3, 7, 5)
    cosines = torch.nn.functional.cosine_similarity(tokens.unsqueeze(1), tokens.unsqueeze(2), dim=-1)
    pairs = ~torch.eye(7, dtype=torch.bool)
    assert torch.allclose(token_diversity(tokens), 1 - cosines[:, pairs].mean(dim=1), atol=1e-5)
    assert token_diversity(torch.ones(1, 4, 3)).item() == pytest.approx(0, abs=1e-6)
    with pytest.raises(StabilityError, match="2 or more tokens"):
        token_diversity(torch.ones(1, 1, 3))
