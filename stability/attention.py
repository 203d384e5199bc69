"""Entropy and effective rank of attention matrices, for each head."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from stability.modes import eval_mode
from stability.multihead import attended
from stability.spectra import effective_rank, entropy

SOFTMAXES = (F.softmax, torch.softmax, Tensor.softmax)


@dataclass(frozen=True)
class AttentionReport:
    """Statistics of one attention layer for each head, averaged over images (and windows).

    Attributes:
        entropy: mean entropy of a row, divided by its largest value log(keys): 0 for one key, 1 for all keys equally.
        rank: effective rank of the attention matrix, divided by its largest value min(queries, keys).
    """

    entropy: Tensor
    rank: Tensor


@torch.no_grad()
def attention_report(model: nn.Module, images: Tensor, most_maps: int = 64) -> dict[str, AttentionReport]:
    """Measure all attention layers of a model that use ``scaled_dot_product_attention`` or a softmax over keys.

    torch's ``nn.MultiheadAttention`` and the layers that are made of it are measured too.
    The model runs once, in eval mode, with its fused kernels. At each call of such a kernel, the attention matrices of
    a few images or windows are also computed from queries and keys. Modes and the random state do not change.

    Args:
        model: a model that is not compiled.
        images: a small batch on the model's device.
        most_maps: largest number of images (or windows) to measure per layer, evenly spaced.

    Returns:
        Reports by the name of the module that computes the attention, in the order of the calls.
    """
    with eval_mode(model), watching_attention(model, most_maps) as reports:
        model(images)
    return reports


@contextmanager
def watching_attention(
    model: nn.Module, most_maps: int, most_rows: int | None = None
) -> Iterator[dict[str, AttentionReport]]:
    """In this context a forward pass of the model fills a dictionary with reports, see :func:`attention_report`.

    Args:
        model: a model that is not compiled.
        most_maps: largest number of images (or windows) to measure per layer, evenly spaced.
        most_rows: largest number of rows (queries) to measure per matrix, evenly spaced; None for all. The rank is
            then that of the matrix of these rows.
    """
    reports: dict[str, AttentionReport] = {}
    with _named_calls(model) as current:

        def look(maps: Tensor) -> None:
            if most_rows is not None:
                maps = maps[..., :: -(-maps.shape[-2] // most_rows), :]
            name = current()
            while name in reports:
                name += "'"  # a module that computes attention twice
            reports[name] = _report(maps)

        with _Watch(look, most_maps):
            yield reports


def _report(maps: Tensor) -> AttentionReport:
    """Average attention matrices ``(maps, heads, queries, keys)`` over maps and queries."""
    most = math.log(max(maps.shape[-1], 2))
    rank = effective_rank(maps) / min(maps.shape[-2:])
    return AttentionReport((entropy(maps) / most).mean(dim=(0, 2)), rank.mean(dim=0))


def _maps(query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None, most: int) -> Tensor:
    """Attention matrices ``(maps, heads, queries, keys)`` of a part of the batch, in float32.

    All dimensions before the heads, such as images and windows, count as the batch.
    """
    while query.ndim < 4:  # no dimension of heads: one head, or the heads are in the batch
        query, key = query.unsqueeze(-3), key.unsqueeze(-3)
        mask = mask.unsqueeze(-3) if mask is not None else None
    batch = torch.broadcast_shapes(query.shape[:-3], key.shape[:-3])
    every = -(-math.prod(batch) // most)

    def part(values: Tensor, *shape: int) -> Tensor:
        return values.detach().expand(*batch, *shape).flatten(0, -4)[::every]

    q, k = (part(values, *values.shape[-3:]).float() for values in (query, key))
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)  # several heads may share their keys
    logits = q @ k.mT * (scale if scale is not None else q.shape[-1] ** -0.5)
    if mask is not None:
        mask = part(mask, *logits.shape[1:])
        logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask.float()
    if is_causal:
        allowed = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
        logits = logits.masked_fill(~allowed, -torch.inf)
    return logits.softmax(dim=-1)


class _Watch(TorchFunctionMode):
    """Pass some matrices of each attention call to a function. The computation itself does not change.

    Args:
        look: called with the matrices, ``(maps, heads, queries, keys)`` in float32.
        most_maps: largest number of images (or windows) per call.
    """

    def __init__(self, look: Callable[[Tensor], None], most_maps: int):
        super().__init__()
        self.look, self.most_maps = look, most_maps

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
            given = dict(zip(names, args, strict=False)) | kwargs
            mask, is_causal, scale = given.get("attn_mask"), given.get("is_causal", False), given.get("scale")
            with torch.autocast(given["query"].device.type, enabled=False):
                self.look(_maps(given["query"], given["key"], mask, is_causal, scale, self.most_maps))
        if func is F.multi_head_attention_forward:
            query, key, mask = attended(args, kwargs)
            with torch.autocast(query.device.type, enabled=False):
                self.look(_maps(query, key, mask, False, None, self.most_maps))
        out = func(*args, **kwargs)
        if func in SOFTMAXES and out.ndim >= 4 and _is_over_keys(out, args, kwargs):
            maps = out.detach().flatten(0, -4)
            self.look(maps[:: -(-len(maps) // self.most_maps)].float())
        return out


def _is_over_keys(out: Tensor, args: Any, kwargs: Any) -> bool:
    """Whether a softmax was taken over the last dimension."""
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    return dim in (-1, out.ndim - 1)


@contextmanager
def _named_calls(model: nn.Module) -> Iterator[Callable[[], str]]:
    """Context with a function that returns the name of the innermost module of ``model`` that is running."""
    running: list[str] = []

    def enter(name: str, *_: Any) -> None:
        running.append(name)

    def leave(*_: Any) -> None:
        running.pop()

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            hooks.enter_context(module.register_forward_pre_hook(partial(enter, name)))
            hooks.enter_context(module.register_forward_hook(leave, always_call=True))
        yield lambda: running[-1] if running else ""
