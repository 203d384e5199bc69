"""Split a model's parameters into groups by weight decay, and mark those that are matrices."""

from collections import defaultdict
from fnmatch import fnmatch
from glob import escape
from typing import Any

from torch import nn

# Parts of the names that timm's models give to position tables and tokens; not all list them in no_weight_decay().
TABLES = ("pos_embed", "position_bias", "rel_pos", "_token")


def param_groups(model: nn.Module, weight_decay: float = 0.05, light_decay: float = 5e-4) -> list[dict[str, Any]]:
    """Split a model's parameters into groups for the LipsFormer recipe and for AdamW².

    These parameters get ``light_decay``: biases, one-dimensional parameters (gains, residual scales), and those in the
    model's ``no_weight_decay()`` (position-bias tables, tokens), which returns names or patterns such as
    ``pos_embed.*``. All other parameters get ``weight_decay``. Frozen parameters are left out. A wrapper around the
    model makes no difference.

    Each group also has two entries that AdamW² uses and other optimizers ignore. ``cap`` says whether the parameters
    are linear maps; tables, tokens and embeddings are not. ``splits`` is the number of matrices on top of each other in
    a parameter: 3 for a fused qkv. ``params`` contains pairs of name and parameter.
    """
    patterns = _exempt(model)
    embeddings = _embeddings(model)
    groups: dict[tuple[float, bool, int], list[tuple[str, nn.Parameter]]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_named = any(fnmatch(name, pattern) for pattern in patterns)
            is_light = parameter.ndim <= 1 or name.endswith(".bias") or is_named
            is_table = is_named or name in embeddings or any(part in name for part in TABLES)
            cap = parameter.ndim >= 2 and not is_table
            decay = light_decay if is_light else weight_decay
            groups[decay, cap, _splits(name, parameter) if cap else 1].append((name, parameter))
    return [
        {"params": members, "weight_decay": decay, "cap": cap, "splits": splits}
        for (decay, cap, splits), members in groups.items()
    ]


def _exempt(module: nn.Module, prefix: str = "") -> set[str]:
    """Return the patterns of parameter names from timm's method ``no_weight_decay()`` of the outermost modules."""
    # Not hasattr(module): wrappers such as a compiled module forward the call, and the names then lack their prefix.
    if hasattr(type(module), "no_weight_decay") or "no_weight_decay" in vars(module):
        own: Any = module.no_weight_decay
        return {escape(prefix) + pattern for pattern in own()}
    if hasattr(type(module), "reset_classifier"):  # a whole timm model: its parts are not asked
        return set()
    return {name for key, child in module.named_children() for name in _exempt(child, f"{prefix}{key}.")}


def _embeddings(model: nn.Module) -> set[str]:
    kinds = (nn.Embedding, nn.EmbeddingBag)
    return {f"{name}.weight".lstrip(".") for name, module in model.named_modules() if isinstance(module, kinds)}


def _splits(name: str, parameter: nn.Parameter) -> int:
    """Return 3 for a matrix that joins queries, keys and values, else 1."""
    parts = name.split(".")
    is_fused = "qkv" in parts or parts[-1] == "in_proj_weight"
    return 3 if is_fused and parameter.shape[0] % 3 == 0 else 1
