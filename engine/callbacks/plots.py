"""Draw curves, heat maps of the layers, and batches of images with matplotlib."""

import warnings
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from torch import Tensor

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # imported after choosing a backend that needs no display
from matplotlib.colors import LogNorm

COLUMNS, MOST_ROWS = 8, 4  # images in the picture of a batch
MOST_NAMES = 16  # layer names beside a heat map
SHARES = ("diversity", "entropy", "rank", "sec")  # kinds of numbers between 0 and 1
CAPTIONS = {
    "sigma": "σ₁ of weights",
    "gradient": "norm of the gradient, before clipping",
    "update": "norm of the step ÷ norm of the weight",
    "gain": "gain of norms (rms)",
    "alpha": "scale of residual branches (rms)",
    "activation": "size of what leaves a block (rms)",
    "diversity": "diversity of tokens after a block",
    "entropy": "entropy of attention ÷ its maximum (lowest head)",
    "rank": "effective rank of attention ÷ its maximum (lowest head)",
    "sec": "energy of W_qᵀW_k in few directions (highest head)",
}


def draw_curves(metrics: list[dict[str, Any]], path: Path) -> None:
    """Draw loss, accuracy, learning rate and gradient norm over the steps.

    Args:
        metrics: the lines of ``metrics.jsonl``.
        path: PNG file to write.
    """
    train = [line for line in metrics if line["split"] == "train"]
    val = [line for line in metrics if line["split"] == "val"]
    # The margins are fixed, because computing them takes matplotlib as long as drawing.
    margins = {"left": 0.06, "right": 0.98, "bottom": 0.07, "top": 0.95, "wspace": 0.15, "hspace": 0.28}
    figure, axes = plt.subplots(2, 2, figsize=(11, 7), gridspec_kw=margins)

    def curve(axis, lines: list[dict[str, Any]], key: str, **style: Any) -> None:
        axis.plot([line["step"] for line in lines], [line[key] for line in lines], **style)

    curve(axes[0, 0], train, "loss", label="training (augmented, smoothed targets)")
    curve(axes[0, 0], val, "loss", label="validation", marker=".")
    axes[0, 0].set(title="loss", xlabel="step")
    curve(axes[0, 1], val, "top1", label="top-1", marker=".")
    curve(axes[0, 1], val, "top5", label="top-5", marker=".")
    axes[0, 1].set(title="validation accuracy", xlabel="step", ylabel="%")
    curve(axes[1, 0], train, "lr", color="C2")
    axes[1, 0].set(title="learning rate", xlabel="step", ylim=(0, None))
    curve(axes[1, 1], train, "grad_norm", color="C3")
    axes[1, 1].set(title="gradient norm before clipping", xlabel="step", ylim=(0, None))
    for axis in axes[0]:
        axis.legend()
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_heat_maps(kinds: dict[str, dict[str, list[float | None]]], steps: list[int], path: Path) -> None:
    """Draw a heat map for each kind of number, with the layers as rows (the first at the top) and the steps as columns.

    Args:
        kinds: for each kind and layer, its number at every reading.
        steps: the steps of the readings.
        path: PNG file to write.
    """
    columns = 2
    rows = -(-len(kinds) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(13, 3.4 * rows), constrained_layout=True, squeeze=False)
    for axis in axes.flat[len(kinds) :]:
        axis.axis("off")
    for axis, (kind, layers) in zip(axes.flat, kinds.items(), strict=False):
        values = np.array(list(layers.values()), dtype=float)  # None becomes NaN, which is drawn white
        is_share = kind in SHARES
        positive = values[np.isfinite(values) & (values > 0)]
        is_wide = len(positive) > 0 and positive.max() > 10 * positive.min()
        norm = LogNorm(positive.min(), positive.max()) if is_wide and not is_share else None
        image = axis.imshow(
            values, aspect="auto", interpolation="nearest", norm=norm, **({"vmin": 0, "vmax": 1} if is_share else {})
        )
        names = list(layers)
        shown = np.unique(np.linspace(0, len(names) - 1, min(len(names), MOST_NAMES)).astype(int))
        axis.set_yticks(shown, [names[i] for i in shown], fontsize=6)
        ticks = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), 6)).astype(int))
        axis.set_xticks(ticks, [str(steps[i]) for i in ticks])
        axis.set(title=CAPTIONS.get(kind, kind), xlabel="step")
        figure.colorbar(image, ax=axis)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def draw_batch(images: Tensor, targets: Tensor, names: dict[int, str], path: Path) -> None:
    """Draw the first images of a batch with their classes. A mixed image shows both classes with their weights.

    Args:
        images: uint8 ``(n, 3, side, side)`` on the CPU.
        targets: ``(n, classes)`` on the CPU.
        names: the name of each class.
        path: PNG file to write.
    """
    rows = min(-(-len(images) // COLUMNS), MOST_ROWS)
    figure = plt.figure(figsize=(1.7 * COLUMNS, 2 * rows))
    # All images share one pair of axes, with a unit square for each: separate axes for each image take seconds to draw.
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, COLUMNS), ylim=(rows, 0), aspect="auto")
    axis.axis("off")
    for i, (image, target) in enumerate(zip(images[: rows * COLUMNS], targets, strict=False)):
        row, column = divmod(i, COLUMNS)
        edges = (column + 0.03, column + 0.97, row + 0.98, row + 0.18)
        axis.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest", extent=edges, aspect="auto")
        text = axis.text(column + 0.5, row + 0.17, _caption(target.numpy(), names), fontsize=8, ha="center")
        text.set_parse_math(False)  # a class name may contain a $
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # characters that the font lacks are drawn as boxes
        figure.savefig(path, dpi=110)
    plt.close(figure)


def _caption(target: np.ndarray, names: dict[int, str]) -> str:
    first, second = np.argsort(target)[::-1][:2]
    rest = target.min()  # label smoothing gives every class this weight
    name, other = (_printable(names[int(label)]) for label in (first, second))
    share = (target[first] - rest) / max(target[first] + target[second] - 2 * rest, 1e-9)
    if share > 0.99:
        return name
    return f"{name} {share:.0%}\n{other} {1 - share:.0%}"


def _printable(name: str) -> str:
    """Replace bytes of a folder name that are not valid UTF-8 by question marks."""
    return name.encode("utf-8", "replace").decode("utf-8")
