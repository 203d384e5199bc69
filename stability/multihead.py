"""Queries and keys of torch's ``nn.MultiheadAttention``, which instruments see as one call."""

import inspect
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SIGNATURE = inspect.signature(F.multi_head_attention_forward)


class Attended(NamedTuple):
    """What decides the attention matrices of a call.

    Attributes:
        query: ``(batch, heads, queries, channels of a head)``.
        key: ``(batch, heads, keys, channels of a head)``.
        mask: added to the logits, of a shape that broadcasts to ``(batch, heads, queries, keys)``; None for none.
    """

    query: Tensor
    key: Tensor
    mask: Tensor | None


def attended(args: Any, kwargs: Any) -> Attended:
    """Compute the queries, keys and mask of a call of ``F.multi_head_attention_forward``.

    Keys that its options ``bias_k`` and ``add_zero_attn`` append are left out.
    """
    given = SIGNATURE.bind(*args, **kwargs).arguments
    heads = given["num_heads"]
    if given.get("use_separate_proj_weight"):
        w_q, w_k = given["q_proj_weight"], given["k_proj_weight"]
    else:
        w_q, w_k, _ = given["in_proj_weight"].chunk(3)
    bias = given["in_proj_bias"]
    b_q, b_k, _ = (None, None, None) if bias is None else bias.chunk(3)
    query, key = (
        _by_head(F.linear(x, w, b), heads) for x, w, b in ((given["query"], w_q, b_q), (given["key"], w_k, b_k))
    )
    masks = (_pair_mask(given.get("attn_mask"), heads), _key_mask(given.get("key_padding_mask")))
    added = [_as_logits(mask) for mask in masks if mask is not None]
    return Attended(query, key, sum(added[1:], added[0]) if added else None)


def _by_head(x: Tensor, heads: int) -> Tensor:
    """``(tokens, batch, channels)`` or ``(tokens, channels)`` to ``(batch, heads, tokens, channels of a head)``."""
    x = x if x.ndim == 3 else x.unsqueeze(1)
    return x.unflatten(-1, (heads, -1)).permute(1, 2, 0, 3)


def _pair_mask(mask: Tensor | None, heads: int) -> Tensor | None:
    """``(queries, keys)`` as it is; ``(batch * heads, queries, keys)`` as ``(batch, heads, queries, keys)``."""
    return mask if mask is None or mask.ndim == 2 else mask.unflatten(0, (-1, heads))


def _key_mask(mask: Tensor | None) -> Tensor | None:
    """``(batch, keys)`` or ``(keys,)`` to a shape that broadcasts."""
    return None if mask is None else mask.unsqueeze(-2).unsqueeze(-2)


def _as_logits(mask: Tensor) -> Tensor:
    """A mask as numbers to add. A boolean mask is true where attention is forbidden."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, device=mask.device).masked_fill(mask, -torch.inf)
