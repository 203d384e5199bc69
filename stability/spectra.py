"""Singular values of matrices, and of W_qᵀW_k, which decides where attention looks."""

import torch
from torch import Tensor

from stability.errors import StabilityError


def effective_rank(matrices: Tensor) -> Tensor:
    """The exponential of the entropy of the singular values' shares of their sum (Roy & Vetterli, 2007).

    Args:
        matrices: ``(..., rows, columns)``.

    Returns:
        ``(...)``, from 1 (one direction) to ``min(rows, columns)`` (all singular values equal); 0 for a zero matrix.
    """
    values = _singular_values(matrices)
    total = values.sum(dim=-1, keepdim=True)
    shares = values / total.clamp_min(torch.finfo(values.dtype).tiny)
    return torch.where(total.squeeze(-1) == 0, 0, entropy(shares).exp())


def _singular_values(matrices: Tensor) -> Tensor:
    """Singular values of ``(..., rows, columns)``, the largest first; NaN for a matrix that is not finite.

    They are computed on the CPU, because a GPU decomposes many small matrices slowly, one after the other.
    """
    host = matrices.float().cpu()
    is_finite = host.isfinite().all(dim=-1, keepdim=True).all(dim=-2, keepdim=True)
    values = torch.linalg.svdvals(torch.where(is_finite, host, 0))
    return torch.where(is_finite.squeeze(-1), values, torch.nan).to(matrices.device)


def entropy(shares: Tensor) -> Tensor:
    """Entropy in nats over the last dimension. Its entries must be 0 or more and sum to 1."""
    return torch.special.entr(shares).sum(dim=-1)


def query_key_energies(w_q: Tensor, w_k: Tensor, num_heads: int) -> Tensor:
    """Squared singular values of W_qᵀW_k for each head, the largest first.

    The product needs no SVD of its full size. With the QR decompositions W_qᵀ = Q_q R_q and W_kᵀ = Q_k R_k, it has the
    singular values of the small matrix R_q R_kᵀ.

    Args:
        w_q: query weights, ``(dim, in)``.
        w_k: key weights, ``(dim, in)``.
        num_heads: number of heads; divides ``dim``.

    Returns:
        ``(num_heads, min(dim / num_heads, in))``.

    Raises:
        StabilityError: if the shapes differ or the heads do not divide them.
    """
    if w_q.shape != w_k.shape or w_q.ndim != 2 or w_q.shape[0] % num_heads:
        raise StabilityError(
            f"query weights {tuple(w_q.shape)} and key weights {tuple(w_k.shape)} must have the same shape, "
            f"(dim, in) with a dim that {num_heads} heads divide"
        )
    factors = (torch.linalg.qr(w.float().cpu().unflatten(0, (num_heads, -1)).mT, mode="r").R for w in (w_q, w_k))
    r_q, r_k = factors
    return _singular_values(r_q @ r_k.mT).square().to(w_q.device)


def energy_concentration(energies: Tensor, directions: int = 10) -> Tensor:
    """SEC(s), the share of the energy in the s largest directions (Qi et al., ICLR 2025).

    Runs that crash put nearly all of it into fewer than 10.

    Args:
        energies: ``(..., n)``, the largest first, as :func:`query_key_energies` returns them.
        directions: s.

    Returns:
        ``(...)``, from s / n to 1; 1 if the energy is 0.
    """
    total = energies.sum(dim=-1)
    share = energies[..., :directions].sum(dim=-1) / total.clamp_min(torch.finfo(energies.dtype).tiny)
    return torch.where(total == 0, 1, share)
