"""Split a model's parameters into groups by weight decay, and mark those that are matrices."""

from collections import defaultdict
from fnmatch import fnmatch
from glob import escape
from typing import Any

from timm.models import group_parameters
from torch import nn

from optim.errors import OptimError

# Parts of the names that timm's models give to position tables and tokens; not all list them in no_weight_decay().
TABLES = ("pos_embed", "position_bias", "rel_pos", "_token")


def param_groups(
    model: nn.Module, weight_decay: float = 0.05, light_decay: float = 5e-4, layer_decay: float | None = None
) -> list[dict[str, Any]]:
    """Split a model's parameters into the groups of all optimizers here.

    These parameters get ``light_decay``: biases, one-dimensional parameters (gains, residual scales), and those in the
    model's ``no_weight_decay()`` (position-bias tables, tokens), which returns names or patterns such as
    ``pos_embed.*``. All other parameters get ``weight_decay``. Frozen parameters are left out. A wrapper around the
    model makes no difference.

    Each group also has two entries that AdamW², weight caps and ``SpectralNorms`` read; Muon reads the first. ``cap``
    says whether the parameters are linear maps; tables, tokens and embeddings are not. ``splits`` is the number of
    matrices on top of each other in a parameter: 3 for a fused qkv. ``params`` contains pairs of name and parameter.

    With ``layer_decay``, a group also has ``lr_scale``, by which timm's schedulers multiply its learning rate. It is 1
    for the last layer, and in each layer before ``layer_decay`` times that of the next (BEiT, Bao et al. 2022).

    Raises:
        OptimError: if ``layer_decay`` is given and the model does not say what its layers are.
    """
    scales = _layer_scales(model, layer_decay) if layer_decay is not None else {}
    patterns = _exempt(model)
    embeddings = _embeddings(model)
    groups: dict[tuple[float, bool, int, float | None], list[tuple[str, nn.Parameter]]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_named = any(fnmatch(name, pattern) for pattern in patterns)
            is_light = parameter.ndim <= 1 or name.endswith(".bias") or is_named
            is_table = is_named or name in embeddings or any(part in name for part in TABLES)
            cap = parameter.ndim >= 2 and not is_table
            decay = light_decay if is_light else weight_decay
            splits = _splits(name, parameter) if cap else 1
            groups[decay, cap, splits, scales.get(name)].append((name, parameter))
    return [
        {"params": members, "weight_decay": decay, "cap": cap, "splits": splits}
        | ({} if scale is None else {"lr_scale": scale})
        for (decay, cap, splits, scale), members in groups.items()
    ]


def _layer_scales(model: nn.Module, layer_decay: float) -> dict[str, float]:
    """The factor of the learning rate of each parameter, by timm's ``group_matcher()`` of the model."""
    matcher: Any = getattr(model, "group_matcher", None)
    if matcher is None:
        raise OptimError(f"{type(model).__name__} does not say what its layers are: leave optim.layer_decay out")
    layers = group_parameters(model, matcher(coarse=False), reverse=True)
    last = max(layers.values())
    return {name: layer_decay ** (last - layer) for name, layer in layers.items()}


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
