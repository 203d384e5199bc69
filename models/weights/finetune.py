"""Start from weights that were trained with other classes, image sizes or window sizes."""

from pathlib import Path
from typing import Any

from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table, to_2tuple
from timm.utils import unwrap_model
from torch import Tensor, nn

from models.errors import ModelError
from models.weights.loading import classifiers, load_weights, named_for, read_weights


def start_from(model: nn.Module, weights: str | Path | dict[str, Tensor], source: str | None = None) -> list[str]:
    """Load weights, as :func:`models.load_weights`, into a model with other classes or another image size.

    If the number of classes differs, or the weights have no classifier, the model keeps its own, newly initialised one.
    Position tables of another size are interpolated, see :func:`load_resized`.

    Returns:
        One line for each change.

    Raises:
        ModelError: if anything else differs.
    """
    model = unwrap_model(model)
    if not isinstance(weights, dict):
        source, weights = source or str(weights), read_weights(weights)
    weights = named_for(model, weights)
    head = _new_head(model, model.state_dict(), weights)
    notices = load_resized(model, weights | head, source)
    if head:
        why = f"{source or 'the file'} has none"
        if other := next((key for key in head if key in weights and head[key].shape != weights[key].shape), None):
            why = f"{len(head[other])} classes instead of {len(weights[other])}"
        notices.insert(0, f"the classifier is newly initialised: {why}")
    return notices


def load_resized(model: nn.Module, weights: dict[str, Tensor], source: str | None = None) -> list[str]:
    """Load weights, as :func:`models.load_weights`, and interpolate position tables to the model's image size.

    Relative position bias tables and absolute position embeddings are interpolated as in timm.

    Returns:
        One line for each kind of table that was interpolated.

    Raises:
        ModelError: if anything else differs.
    """
    model = unwrap_model(model)
    weights = named_for(model, weights)
    tables = _resized(model, weights, source)
    load_weights(model, weights | tables, source)
    embeddings = {name: value for name, value in tables.items() if name.endswith("pos_embed")}
    notices = []
    if biases := len(tables) - len(embeddings):
        notices.append(f"{biases} relative position bias tables were resized to the model's windows")
    for name, value in embeddings.items():
        notices.append(f"{name} was resized from {weights[name].shape[1]} to {value.shape[1]} tokens")
    return notices


def fitted(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Convert weights for timm to load: to the model's names, and position tables to its image size.

    This is the models' ``pretrained_filter_fn`` in timm.

    Raises:
        ModelError: if a table cannot be resized.
    """
    weights = named_for(model, weights)
    return weights | _resized(model, weights)


def _resized(model: nn.Module, weights: dict[str, Tensor], source: str | None = None) -> dict[str, Tensor]:
    """The position tables whose size differs, interpolated to the model's size."""
    own = model.state_dict()
    try:
        return _resized_biases(model, own, weights) | _resized_embeddings(model, own, weights)
    except (AssertionError, RuntimeError, ValueError) as error:  # timm resizes squares only
        raise ModelError(f"the position tables of {source or 'the file'} cannot be resized: {error}") from error


def _new_head(model: nn.Module, own: dict[str, Tensor], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The model's own tensors of the classifiers that ``weights`` lacks, or has for another number of classes."""
    head: dict[str, Tensor] = {}
    for name in classifiers(model):
        # All tensors of the layer, not only weight and bias: σReparam stores a weight as several tensors.
        whole = [key for key in own if key.startswith(f"{name}.")]
        keys = [key for key in whole if key in weights]
        if not keys:
            head |= {key: own[key] for key in whole}
        others = [key for key in keys if own[key].shape != weights[key].shape]
        if others and all(_differ_only_in(0, own[key], weights[key]) for key in others):
            head |= {key: own[key] for key in keys}
    return head


def _resized_biases(model: nn.Module, own: dict[str, Tensor], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Bias tables ``((2w - 1)**2, heads)`` of another window size w, interpolated to the model's window size."""
    resized = {}
    for name in _differing(own, weights, "relative_position_bias_table", dim=0):
        window = getattr(model.get_submodule(name.rpartition(".")[0]), "window_size", None)
        if window is not None:
            resized[name] = resize_rel_pos_bias_table(weights[name], to_2tuple(window), tuple(own[name].shape))
    return resized


def _resized_embeddings(model: nn.Module, own: dict[str, Tensor], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Position embeddings ``(1, tokens, dim)`` of another patch grid, interpolated to the model's grid."""
    grid: Any = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    prefix = 0 if getattr(model, "no_embed_class", False) else getattr(model, "num_prefix_tokens", 1)
    names = _differing(own, weights, "pos_embed", dim=1) if grid is not None else []
    how: dict[str, Any] = {"num_prefix_tokens": prefix}
    if "flexivit" in getattr(model, "pretrained_cfg", {}).get("architecture", ""):  # as it was trained, and as in timm
        how |= {"interpolation": "bilinear", "antialias": False}
    return {name: resample_abs_pos_embed(weights[name], list(grid), **how) for name in names}


def _differing(own: dict[str, Tensor], weights: dict[str, Tensor], ending: str, dim: int) -> list[str]:
    """Names with that ending whose shapes in ``own`` and ``weights`` differ in dimension ``dim`` only."""
    names = [name for name in own if name.endswith(ending) and name in weights]
    return [name for name in names if _differ_only_in(dim, own[name], weights[name])]


def _differ_only_in(dim: int, a: Tensor, b: Tensor) -> bool:
    sizes, others = list(a.shape), list(b.shape)
    return len(sizes) == len(others) > dim and sizes.pop(dim) != others.pop(dim) and sizes == others
