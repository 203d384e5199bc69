"""The map of a study: learning rate across, the other axes down, accuracy as brightness, crashes crossed out."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import numpy as np

from scripts.common.pictures import plt, save
from scripts.studies.results import Row, top1
from scripts.studies.study import Study
from scripts.studies.width import POINTS, widths


def draw_crash_map(study: Study, rows: Sequence[Row], path: Path) -> None:
    """Draw the mean final top-1 at each place of the grid. The last axis goes across.

    A cross marks a place where every seed crashed, a slash one where some did. On the right stands how wide
    the range of good learning rates is, see ``scripts/studies/width.py``.
    """
    down, across, places = study.down, study.across, study.lines()
    labels = list(study.axes[across])
    means = np.full((len(places), len(labels)), np.nan)
    size = (max(6.2, 3.2 + len(labels)), 2.0 + 0.42 * len(places))
    figure, axis = plt.subplots(figsize=size, constrained_layout=True)
    for y, place in enumerate(places):
        for x, label in enumerate(labels):
            chosen = [r for r in rows if tuple(r[name] for name in down) == place and r[across] == label]
            if not chosen:
                axis.text(x, y, "not run", ha="center", va="center", fontsize=8, bbox={"fc": "white", "ec": "none"})
                continue
            means[y, x] = fmean(map(top1, chosen))
            crashed = sum(row["crashed"] == "True" for row in chosen)
            mark = "×" if crashed == len(chosen) else f"{means[y, x]:.1f}{' /' if crashed else ''}"
            axis.text(x, y, mark, ha="center", va="center", fontsize=9, bbox={"fc": "white", "ec": "none", "pad": 1})
    axis.patch.set(hatch="////", edgecolor="0.8")  # where nothing was run, so that it does not look like the best
    image = axis.imshow(means, cmap="gray", vmin=0, aspect="auto")
    axis.set_xticks(range(len(labels)), labels)
    axis.set_yticks(range(len(places)), [_title(down, place) for place in places])
    axis.set(
        xlabel={"lr": "learning rate"}.get(across, across), title="final top-1, %;  × every seed crashed,  / some did"
    )
    if wide := widths(study, rows):
        right = axis.secondary_yaxis("right")
        right.set_yticks(range(len(places)), [str(wide.get(place, "")) for place in places])
        right.set_ylabel(f"octaves within {POINTS:g} points")
    figure.colorbar(image, ax=axis, label="top-1, %")
    save(figure, path)


def _title(axes: Sequence[str], labels: Sequence[str]) -> str:
    """All labels of a place, such as ``pre, warm-up none``. The first one needs no name of its axis."""
    named = [f"{axis} {label}" for axis, label in zip(axes[1:], labels[1:], strict=True)]
    return ", ".join([labels[0], *named])
