"""How wide the range of good learning rates is: one number for each row of a crash map."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from scripts.studies.results import Row, top1
from scripts.studies.study import Study

POINTS = 2.0  # a rate is good if its mean top-1 is at most this far below the best


@dataclass(frozen=True)
class Width:
    """A range of good learning rates.

    Attributes:
        octaves: its width; each octave doubles the rate.
        is_open: whether the lowest or highest rate of the grid is still good, so that the range may be wider.
    """

    octaves: float
    is_open: bool

    def __str__(self) -> str:
        return f"{'≥ ' if self.is_open else ''}{self.octaves:.1f}"


def width(rates: Sequence[float], means: Sequence[float], points: float = POINTS) -> Width:
    """The width of the range around the best rate in which the mean is at most ``points`` below the best one.

    Between two rates of the grid the mean is interpolated linearly over the logarithm of the rate.

    Args:
        rates: learning rates, ascending.
        means: mean top-1 in percent at each.
        points: see above.
    """
    best, last = means.index(max(means)), len(means) - 1
    least = means[best] - points
    octaves, is_open = 0.0, False
    for step, end in ((-1, 0), (1, last)):
        here = best
        while here != end and means[here + step] >= least:
            octaves += abs(math.log2(rates[here + step] / rates[here]))
            here += step
        if here == end:
            is_open = True
        else:
            inside = (means[here] - least) / (means[here] - means[here + step])
            octaves += inside * abs(math.log2(rates[here + step] / rates[here]))
    return Width(octaves, is_open)


def widths(study: Study, rows: Sequence[Row]) -> dict[tuple[str, ...], Width]:
    """The width of each row of a study's grid that has been run at every rate.

    Returns:
        By the labels of all axes but the last, without rows that crash at every rate. Empty if the labels of the last
        axis are not two or more learning rates, ascending.
    """
    labels = list(study.axes[study.across])
    try:
        rates = [float(label) for label in labels]
    except ValueError:
        return {}
    if len(rates) < 2 or rates != sorted(rates):
        return {}
    found = {}
    for place in study.lines():
        chosen = [row for row in rows if tuple(row[axis] for axis in study.down) == place]
        tops = [[top1(r) for r in chosen if r[study.across] == label] for label in labels]
        if all(tops) and max(map(fmean, tops)) > study.crash_below:
            found[place] = width(rates, [fmean(values) for values in tops])
    return found
