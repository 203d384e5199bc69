"""Read all instruments at an optimizer step without changing the step."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stability.attention import AttentionReport, watching_attention
from stability.blocks import BlockReport, watching_blocks
from stability.crash_signs import collapsed_heads, few_directions
from stability.layers import norm_gains, query_keys, residual_scales, weight_matrices
from stability.modes import eval_mode
from stability.spectra import energy_concentration, query_key_energies

MOST_MAPS, MOST_ROWS = 2, 64  # images (or windows) of a layer, and rows of each matrix, that are measured

Values = dict[str, Tensor]


@dataclass(frozen=True)
class StabilityReport:
    """One reading.

    Attributes:
        layers: values by kind and layer name: one value, or one per head. The kinds:
            ``sigma``: σ₁ of a weight;
            ``gradient``: norm of a weight's gradient before clipping;
            ``update``: norm of the step divided by the norm of the weight;
            ``gain``: root mean square of a norm's gains;
            ``alpha``: root mean square of a residual branch's learned scales;
            ``activation``: root mean square of a block's output;
            ``diversity``: diversity of the tokens in a block's output;
            ``entropy``, ``rank``: entropy and effective rank of attention, of ``MOST_ROWS`` rows of the matrix at most,
            divided by their largest values for so many rows;
            ``sec``: share of the energy of W_qᵀW_k in few directions.
        collapsed: indices of the collapsed heads, by the name of the attention layer.
        seconds: duration of the reading.
    """

    layers: dict[str, dict[str, list[float]]]
    collapsed: dict[str, list[int]]
    seconds: float


@dataclass(frozen=True)
class _Kept:
    """What a reading needs from before the update.

    Attributes:
        probe: the images to run the model on.
        trained: the weights that have gradients, by layer.
        gradients: the norms of their gradients.
        before: copies of them.
        seconds: how long it took to collect all this.
    """

    probe: Tensor
    trained: dict[str, nn.Parameter]
    gradients: list[Tensor]
    before: list[Tensor]
    seconds: float


class StabilityMonitor:
    """Takes readings. Call :meth:`before_update` before the optimizer's step, and :meth:`after_update` after it.

    The monitor uses no random numbers and changes no weight, mode or buffer. A run has the same weights with it and
    without it.

    Args:
        model: the model itself, not compiled and not wrapped.
        spectral_norms: returns the largest singular values of the weights by name.
        precision: returns the context in which to run the model, such as autocast.
        most_images: largest number of images of a batch to run the model on.
    """

    def __init__(
        self,
        model: nn.Module,
        spectral_norms: Callable[[], Values],
        precision: Callable[[], AbstractContextManager] = nullcontext,
        most_images: int = 16,
    ):
        self.model, self.spectral_norms, self.precision = model, spectral_norms, precision
        self.most_images = most_images
        self.weights = weight_matrices(model)
        self.kept: _Kept | None = None

    @torch.no_grad()
    def before_update(self, images: Tensor) -> None:
        """Call this before gradients are clipped and weights change.

        Args:
            images: the model's input in this step, ``(batch, 3, side, side)``.
        """
        started = time.perf_counter()
        trained = {name: weight for name, weight in self.weights.items() if weight.grad is not None}
        gradients = [weight.grad for weight in trained.values() if weight.grad is not None]
        norms = torch._foreach_norm(gradients) if gradients else ()
        before = [weight.detach().clone() for weight in trained.values()]
        probe = images[: self.most_images].detach()
        self.kept = _Kept(probe, trained, list(norms), before, time.perf_counter() - started)

    @torch.no_grad()
    def after_update(self) -> StabilityReport:
        """Call this after the optimizer's step. Returns the reading. Only this method waits for the device."""
        started = time.perf_counter()
        kept, self.kept = self.kept, None  # first, so that a reading that fails leaves nothing on the device
        assert kept is not None
        attention, blocks = self._probe(kept.probe)
        energies = {name: query_key_energies(qk.query, qk.key, qk.heads) for name, qk in query_keys(self.model).items()}
        sec = {name: energy_concentration(e, few_directions(e.shape[-1])) for name, e in energies.items()}
        entropy = _by_owner({name: report.entropy for name, report in attention.items()}, list(sec))
        rank = _by_owner({name: report.rank for name, report in attention.items()}, list(sec))
        layers = {
            "sigma": self._in_order(self.spectral_norms()),
            "gradient": dict(zip(kept.trained, kept.gradients, strict=True)),
            "update": _updates(kept.trained, kept.before),
            "gain": {name: _rms(gain) for name, gain in norm_gains(self.model).items()},
            "alpha": {name: _rms(scale) for name, scale in residual_scales(self.model).items()},
            "activation": {name: report.scale for name, report in blocks.items()},
            "diversity": {name: r.diversity for name, r in blocks.items() if r.diversity is not None},
            "entropy": entropy,
            "rank": rank,
            "sec": sec,
        }
        on_host = _on_host({kind: values for kind, values in layers.items() if values})
        collapsed = {name: _collapsed(on_host, name) for name in sec if name in entropy}
        seconds = kept.seconds + time.perf_counter() - started
        return StabilityReport(on_host, {name: heads for name, heads in collapsed.items() if heads}, seconds)

    def _probe(self, images: Tensor) -> tuple[dict[str, AttentionReport], dict[str, BlockReport]]:
        """Run the model on images."""
        with (
            eval_mode(self.model),
            self.precision(),
            watching_attention(self.model, MOST_MAPS, MOST_ROWS) as attention,
            watching_blocks(self.model) as blocks,
        ):
            self.model(images)
        return attention, blocks

    def _in_order(self, values: Values) -> Values:
        """Sort values in the model's order. A name is a layer or a part of one, such as ``attn.qkv.q``."""
        places = {name: place for place, name in enumerate(self.weights)}
        named = {name: name if name in places else name.rpartition(".")[0] for name in values}
        return {name: values[name] for name in sorted(values, key=lambda name: places.get(named[name], len(places)))}


def _updates(trained: dict[str, nn.Parameter], before: list[Tensor]) -> Values:
    """The norm of each step divided by the norm of its weight. Changes the copies of the weights from before it."""
    if not trained:
        return {}
    sizes = torch._foreach_norm(before)
    torch._foreach_sub_(before, list(trained.values()))
    moves = torch._foreach_norm(before)
    return {name: move / size for name, move, size in zip(trained, moves, sizes, strict=True)}


def _rms(values: Tensor) -> Tensor:
    return values.detach().float().square().mean().sqrt()


def _by_owner(parts: Values, owners: list[str]) -> Values:
    """Values of each head under the name of the layer that owns W_q and W_k.

    The attention may be computed in several parts of that layer. Their heads are then joined. A name that ends in ``'``
    is a second call of the same module.
    """
    joined: dict[str, list[Tensor]] = {}
    for name, heads in parts.items():
        owner = next((owner for owner in owners if name.rstrip("'") == owner or name.startswith(f"{owner}.")), name)
        joined.setdefault(owner, []).append(heads)
    return {owner: torch.cat(heads) for owner, heads in joined.items()}


def _on_host(layers: dict[str, Values]) -> dict[str, dict[str, list[float]]]:
    """Copy all values to the host in one transfer."""
    flat = [values.detach().double().flatten() for kind in layers.values() for values in kind.values()]
    numbers = iter(torch.cat(flat).tolist() if flat else ())
    return {
        kind: {name: [next(numbers) for _ in range(values.numel())] for name, values in by_name.items()}
        for kind, by_name in layers.items()
    }


def _collapsed(layers: dict[str, dict[str, list[float]]], name: str) -> list[int]:
    entropy, rank, sec = (torch.tensor(layers[kind][name]) for kind in ("entropy", "rank", "sec"))
    return collapsed_heads(entropy, rank, sec) if entropy.shape == sec.shape else []
