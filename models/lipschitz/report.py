"""Lipschitz bounds of layers: their values, their composition, and a table of them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_SEE = "see "  # prefix of the reason if a part of the layer is infinite


@dataclass(frozen=True)
class LayerBound:
    """Bounds of a layer's Lipschitz constant, as logarithms because the product over a deep model overflows.

    Attributes:
        name: name of the layer in the model; empty for the model itself.
        kind: class of the layer, or what it does.
        log10_published: the bound as the papers state it.
        log10_tight: the smallest bound that we know.
        reason: why the bound is infinite; empty if it is finite.
        parts: the layers that this layer consists of.
    """

    name: str
    kind: str
    log10_published: float
    log10_tight: float
    reason: str = ""
    parts: tuple["LayerBound", ...] = ()

    @property
    def published(self) -> float:
        return _power(self.log10_published)

    @property
    def tight(self) -> float:
        return _power(self.log10_tight)

    def rows(self, depth: int = 0) -> Iterator[tuple[int, "LayerBound"]]:
        """This layer and all layers inside it, each with its depth, in the order of computation."""
        yield depth, self
        for part in self.parts:
            yield from part.rows(depth + 1)


@dataclass(frozen=True)
class LipschitzReport:
    """The Lipschitz bound of a model and of its layers; ``str()`` makes a table.

    Attributes:
        total: bound of the whole model.
    """

    total: LayerBound

    @property
    def layers(self) -> list[LayerBound]:
        """All layers; a part comes after the layer that contains it."""
        return [layer for _, layer in self.total.rows()][1:]

    @property
    def published(self) -> float:
        """The published bound. It is ``inf`` also if a float cannot hold it; ``log10_published`` is not."""
        return self.total.published

    @property
    def tight(self) -> float:
        """The tight bound. It is ``inf`` also if a float cannot hold it; ``log10_tight`` is not."""
        return self.total.tight

    @property
    def log10_published(self) -> float:
        return self.total.log10_published

    @property
    def log10_tight(self) -> float:
        return self.total.log10_tight

    @property
    def finite(self) -> bool:
        return self.log10_tight < math.inf

    @property
    def reasons(self) -> dict[str, list[str]]:
        """Why the bound is infinite: each reason with the names of its layers."""
        found: dict[str, list[str]] = {}
        for _, layer in self.total.rows():
            if layer.reason and not layer.reason.startswith(_SEE):
                found.setdefault(layer.reason, []).append(layer.name or "model")
        return found

    def __str__(self) -> str:
        cells = [("layer", "", "published", "tight", "")]
        for depth, layer in self.total.rows():
            name = "  " * depth + (layer.name or "model")
            bounds = _readable(layer.log10_published), _readable(layer.log10_tight)
            cells.append((name, layer.kind, *bounds, layer.reason))
        first, second = (max(len(row[i]) for row in cells) for i in (0, 1))
        return "\n".join(f"{a:{first}}  {b:{second}}  {c:>10}  {d:>10}  {e}".rstrip() for a, b, c, d, e in cells)


def known(name: str, kind: str, published: float, tight: float | None = None) -> LayerBound:
    """A layer with a finite bound. Without ``tight``, the published bound is used for both."""
    return LayerBound(name, kind, _log10(published), _log10(published if tight is None else tight))


def infinite(name: str, kind: str, reason: str, parts: Sequence[LayerBound] = ()) -> LayerBound:
    """A layer without a finite bound, and its parts."""
    return LayerBound(name, kind, math.inf, math.inf, reason, tuple(parts))


def chain(name: str, kind: str, parts: Sequence[LayerBound]) -> LayerBound:
    """Layers one after the other: their constants multiply."""
    published = _product([part.log10_published for part in parts])
    tight = _product([part.log10_tight for part in parts])
    return LayerBound(name, kind, published, tight, _see(parts), tuple(parts))


def residual(name: str, scale: float, branch: LayerBound) -> LayerBound:
    """``x + α · branch(x)`` with ``scale`` = max|α|: its constant is at most 1 + max|α| · Lip(branch)."""
    published = _one_plus(_product([_log10(scale), branch.log10_published]))
    tight = _one_plus(_product([_log10(scale), branch.log10_tight]))
    return LayerBound(name, f"1 + {scale:.3g} · branch", published, tight, _see([branch]), (branch,))


def _see(parts: Sequence[LayerBound]) -> str:
    """The reason of a layer with an infinite part: the name of that part."""
    return next((_SEE + part.name for part in parts if part.reason), "")


def _product(logs: Sequence[float]) -> float:
    """The logarithm of a product. Infinity times zero is infinity here, which is still a valid upper bound."""
    return math.inf if math.inf in logs else sum(logs)


def _one_plus(log: float) -> float:
    """log10(1 + 10^log) without overflow."""
    return max(log, 0.0) + math.log10(1 + 10 ** -abs(log))


def _log10(x: float) -> float:
    return math.log10(x) if x > 0 else -math.inf


def _power(log: float) -> float:
    return 10**log if log < 308 else math.inf


def _readable(log: float) -> str:
    if math.isinf(log):
        return "∞" if log > 0 else "0"
    return f"{10**log:.4g}" if log < 5 else f"10^{log:.2f}"
