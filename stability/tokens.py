"""How different the tokens of an image are from one another."""

import torch.nn.functional as F
from torch import Tensor

from stability.errors import StabilityError


def token_diversity(tokens: Tensor) -> Tensor:
    """1 − the mean cosine over all pairs of an image's tokens (Wang et al., AAAI 2022).

    Args:
        tokens: ``(batch, tokens, channels)``, class token left out.

    Returns:
        ``(batch,)``: 0 where all point the same way, about 1 where they have nothing in common.

    Raises:
        StabilityError: for less than two tokens, which have no pairs.
    """
    if tokens.ndim != 3 or tokens.shape[1] < 2:
        raise StabilityError(f"token_diversity needs (batch, 2 or more tokens, channels), got {tuple(tokens.shape)}")
    count = tokens.shape[1]
    # The sum over pairs is a part of the squared length of the sum: no matrix of all cosines is needed.
    total = F.normalize(tokens.float(), dim=-1).sum(dim=1).square().sum(dim=-1)
    return 1 - (total - count) / (count * (count - 1))
