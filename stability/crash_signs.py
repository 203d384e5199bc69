"""Whether an attention layer collapses in the way that precedes a crash.

A crash of training announces itself in the product W_qᵀW_k: nearly all of its energy moves into a few directions, and
attention becomes sparse *and* low-rank, every query looking at the same few keys. Sparse attention of full rank, each
query at keys of its own, is benign (Qi et al., ICLR 2025). The thresholds are ours: docs/stability.md shows them beside
healthy runs and a crash.
"""

from torch import Tensor

LOW_ENTROPY = 0.25  # of a row, as a share of the largest possible
LOW_RANK = 0.1  # effective rank, as a share of the largest possible
HIGH_CONCENTRATION = 0.9  # energy of W_qᵀW_k in the first directions
# Directions that count as few: the paper's 10, for heads of 64 channels, and the same share of others.
FEW, OF = 10, 64


def few_directions(channels: int) -> int:
    """How many directions of a head with that many channels count as few, at least one."""
    return max(1, round(FEW * channels / OF))


def collapsed_heads(entropy: Tensor, rank: Tensor, concentration: Tensor) -> list[int]:
    """The heads, counted from 0, whose attention collapses malignantly; all arguments ``(heads,)``."""
    is_collapsed = (entropy < LOW_ENTROPY) & (rank < LOW_RANK) & (concentration > HIGH_CONCENTRATION)
    return is_collapsed.nonzero().flatten().tolist()
