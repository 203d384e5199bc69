"""What instruments read from a model without running it: weights, gains, residual scales, queries and keys."""

from dataclasses import dataclass

from torch import Tensor, nn

# Names that timm's models and ours give to the learned scale of a residual branch.
SCALES = ("scale", "gamma", "gamma1", "gamma2", "gamma_1", "gamma_2")


@dataclass(frozen=True)
class QueryKey:
    """The weights that compute queries and keys, ``(dim, in)`` each.

    Attributes:
        query: W_q.
        key: W_k.
        heads: number of heads; divides ``dim``.
    """

    query: Tensor
    key: Tensor
    heads: int


def weight_matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable weights with two or more dimensions, by layer name."""
    return {
        name.removesuffix(".weight"): parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim >= 2 and parameter.requires_grad
    }


def norm_gains(model: nn.Module) -> dict[str, Tensor]:
    """The gains (``weight``) of all norms that have them: LayerNorm, CenterNorm, BatchNorm, ..."""
    return {
        name: gain
        for name, module in model.named_modules()
        if "Norm" in type(module).__name__ and isinstance(gain := getattr(module, "weight", None), Tensor)
    }


def residual_scales(model: nn.Module) -> dict[str, Tensor]:
    """The learned scales of residual branches, one per channel: α of weighted residuals, γ of LayerScale."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.rpartition(".")[2] in SCALES and parameter.numel() > 1
    }


def query_keys(model: nn.Module) -> dict[str, QueryKey]:
    """The query and key weights of all attention layers with a fused ``qkv``, or with ``q`` and ``k``, by name.

    torch's ``nn.MultiheadAttention`` calls its fused weight ``in_proj_weight``.
    """
    found = ((name, _query_key(module)) for name, module in model.named_modules())
    return {name: weights for name, weights in found if weights is not None}


def _query_key(module: nn.Module) -> QueryKey | None:
    # With these attributes timm's qkv rows are ordered by head, and not all queries, all keys, all values.
    is_by_head = getattr(module, "head_first", False) or hasattr(module, "key_dim")
    heads = _heads(module)
    if not heads or is_by_head:
        return None
    fused = _weight(getattr(module, "qkv", None))
    if fused is None and isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
        fused = module.in_proj_weight.detach()
    if fused is not None and fused.shape[0] % (3 * heads) == 0:
        query, key, _ = fused.chunk(3)
        return QueryKey(query, key, heads)
    for names in (("q_proj", "k_proj"), ("q", "k")):
        w_q, w_k = (_weight(getattr(module, part, None)) for part in names)
        if w_q is not None and w_k is not None and w_q.shape == w_k.shape and w_q.shape[0] % heads == 0:
            return QueryKey(w_q, w_k, heads)
    return None


def _heads(module: nn.Module) -> int:
    """A module's number of heads. If it has none because its parts compute the attention, the sum over them."""
    own = getattr(module, "num_heads", None)
    return own if isinstance(own, int) else sum(map(_heads, module.children()))


def _weight(linear: object) -> Tensor | None:
    """The weight ``(out, in)`` of a linear layer; None for anything else."""
    weight = getattr(linear, "weight", None) if isinstance(linear, nn.Module) else None
    return weight.detach() if isinstance(weight, Tensor) and weight.ndim == 2 else None
