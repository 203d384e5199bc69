"""How different the tokens of an image are from one another."""

import torch.nn.functional as F
from torch import Tensor

from stability.errors import StabilityError


def token_diversity(tokens: Tensor) -> Tensor:
    """1 − the mean cosine similarity of all pairs of an image's tokens (Wang et al., AAAI 2022).

    Args:
        tokens: ``(batch, tokens, channels)``, without the class token.

    Returns:
        ``(batch,)``: 0 if all tokens point in the same direction, about 1 if their directions are unrelated.

    Raises:
        StabilityError: if there are fewer than two tokens.
    """
    if tokens.ndim != 3 or tokens.shape[1] < 2:
        raise StabilityError(f"token_diversity needs (batch, 2 or more tokens, channels), got {tuple(tokens.shape)}")
    count = tokens.shape[1]
    # The squared length of the sum of unit vectors is the sum of all cosines, so no matrix of cosines is needed.
    total = F.normalize(tokens.float(), dim=-1).sum(dim=1).square().sum(dim=-1)
    return 1 - (total - count) / (count * (count - 1))
