"""Detect the collapse of attention that comes before a training crash.

Before a crash nearly all energy of the product W_qᵀW_k moves into a few directions. Attention then becomes sparse *and*
low-rank: all queries look at the same few keys. Sparse attention of full rank, where each query has its own keys, is
benign (Qi et al., ICLR 2025). The thresholds are ours. docs/stability.md compares them with healthy runs and a crash.
"""

from torch import Tensor

LOW_ENTROPY = 0.25  # entropy of a row, divided by its largest value
LOW_RANK = 0.1  # effective rank, divided by its largest value
HIGH_CONCENTRATION = 0.9  # share of the energy of W_qᵀW_k in the first directions
# How many directions are "few": the paper's 10 for heads of 64 channels, and the same share for other heads.
FEW_DIRECTIONS, CHANNELS_OF_A_HEAD = 10, 64


def few_directions(channels: int) -> int:
    """How many directions count as few for a head with that many channels; at least one."""
    return max(1, round(FEW_DIRECTIONS * channels / CHANNELS_OF_A_HEAD))


def collapsed_heads(entropy: Tensor, rank: Tensor, concentration: Tensor) -> list[int]:
    """Indices of the heads with a malignant collapse of attention. All arguments are ``(heads,)``."""
    is_collapsed = (entropy < LOW_ENTROPY) & (rank < LOW_RANK) & (concentration > HIGH_CONCENTRATION)
    return is_collapsed.nonzero().flatten().tolist()
