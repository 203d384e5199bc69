"""The picture of what was measured at initialisation."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from scripts.common.pictures import plain_numbers, plt, save
from scripts.studies.at_init_measuring import Measured


def draw_at_init(measured: Sequence[Measured], path: Path) -> None:
    """Draw the gradients over the depth and over the blocks, and the sizes, of each model."""
    names = list(dict.fromkeys(m.model for m in measured))
    figure, axes = plt.subplots(len(names), 3, figsize=(13, 3.6 * len(names)), constrained_layout=True, squeeze=False)
    marks = {"post": ("o", "-", "Post-LN"), "pre": ("s", "--", "Pre-LN")}
    for (left, middle, right), name in zip(axes, names, strict=True):
        for position, (mark, line, label) in marks.items():
            chosen = [m for m in measured if (m.model, m.position) == (name, position)]
            deepest = max(m.depth for m in chosen)
            style: dict[str, Any] = {"marker": mark, "ls": line, "label": label, "ms": 4}
            left.loglog(*_means([(m.depth, m.gradient) for m in chosen if m.block == m.depth]), **style)
            middle.semilogy(*_means([(m.block, m.gradient) for m in chosen if m.depth == deepest]), **style)
            right.plot(*_means([(m.block, m.size) for m in chosen if m.depth == deepest]), **style)
        left.set(title=f"{name}: last block", xlabel="depth L", ylabel="‖∂loss / ∂W²‖")
        depths = sorted({m.depth for m in measured})
        left.set_xticks(depths, [str(depth) for depth in depths])
        left.minorticks_off()
        plain_numbers(left.yaxis, [m.gradient for m in measured if m.model == name and m.block == m.depth])
        plain_numbers(middle.yaxis, [m.gradient for m in measured if m.model == name and m.depth == max(depths)])
        middle.set(title=f"{name}: {max(depths)} blocks", xlabel="block", ylabel="‖∂loss / ∂W²‖")
        right.set(title=f"{name}: size of the activations", xlabel="block", ylabel="‖x‖² / d")
        for axis in (left, middle, right):
            axis.grid(alpha=0.3)
            axis.legend()
    save(figure, path)


def _means(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    """The mean over the seeds at each place."""
    by_place: dict[int, list[float]] = defaultdict(list)
    for place, value in points:
        by_place[place].append(value)
    return sorted(by_place), [fmean(by_place[place]) for place in sorted(by_place)]
