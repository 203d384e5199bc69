"""Which parameters decay how much, and which of them are matrices."""

from collections import defaultdict
from fnmatch import fnmatch
from glob import escape
from typing import Any

from torch import nn

# Parts of the names that timm's models give to position tables and tokens; not all list them in no_weight_decay().
TABLES = ("pos_embed", "position_bias", "rel_pos", "_token")


def param_groups(model: nn.Module, weight_decay: float = 0.05, light_decay: float = 5e-4) -> list[dict[str, Any]]:
    """Split a model's parameters into groups, as the LipsFormer recipe and AdamW² want them.

    Biases, vectors (gains, residual scales) and what the model's ``no_weight_decay()`` names (position-bias tables,
    tokens), whole or by a pattern such as ``pos_embed.*``, get ``light_decay``; every other weight gets
    ``weight_decay``. Frozen parameters are left out. A model inside of a wrapper is asked as if it stood alone.

    Every group also says what AdamW² reads and others ignore: ``cap``, whether its members are linear maps, which
    tables, tokens and embeddings are not, and ``splits``, the number of matrices on top of one another: 3 for a fused
    qkv. The parameters have their names with them.
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
    """Patterns of names that the ``no_weight_decay()``, timm's convention, of the outermost modules with one gives."""
    # Not hasattr: wrappers such as a compiled module answer for what they wrap, with the names that it has inside.
    if hasattr(type(module), "no_weight_decay") or "no_weight_decay" in vars(module):
        own: Any = module.no_weight_decay
        return {escape(prefix) + pattern for pattern in own()}
    if hasattr(type(module), "reset_classifier"):  # a whole model of timm's, which asks none of its parts
        return set()
    return {name for key, child in module.named_children() for name in _exempt(child, f"{prefix}{key}.")}


def _embeddings(model: nn.Module) -> set[str]:
    kinds = (nn.Embedding, nn.EmbeddingBag)
    return {f"{name}.weight".lstrip(".") for name, module in model.named_modules() if isinstance(module, kinds)}


def _splits(name: str, parameter: nn.Parameter) -> int:
    """3 for queries, keys and values in one matrix."""
    parts = name.split(".")
    is_fused = "qkv" in parts or parts[-1] == "in_proj_weight"
    return 3 if is_fused and parameter.shape[0] % 3 == 0 else 1
