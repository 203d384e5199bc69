"""Pictures of matplotlib, on a machine that may have no display."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from cycler import cycler
from matplotlib import pyplot as plt  # imported after choosing a backend that needs no display
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from engine.errors import UserError

__all__ = ["look", "plain_numbers", "plt", "save"]

# Colour-blind people tell these colours apart (Okabe and Ito, "Color Universal Design", 2008). Six dashes and seven
# colours make 42 lines that all differ, and six that differ without colour.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
DASHES = ("-", "--", ":", "-.", (0, (5, 1)), (0, (1, 1)))
plt.rc("axes", prop_cycle=cycler(color=COLOURS * len(DASHES), linestyle=DASHES * len(COLOURS)))


def look(number: int) -> dict[str, Any]:
    """The look of a line that has the same number in several panels."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number % len(DASHES)]}


def plain_numbers(axis: Any, values: Sequence[float]) -> None:
    """Label a logarithmic axis with 1, 2, 5 and 10 instead of powers, if its values are less than two decades apart."""
    if max(values) < 100 * min(values):
        axis.set(major_locator=LogLocator(subs=(1, 2, 5)), minor_locator=NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def save(figure: Any, path: Path) -> None:
    """Write a figure into a file, and free its memory.

    Raises:
        UserError: if the file's name has no ending, or one that matplotlib does not know.
        OSError: if the file cannot be written.
    """
    if not path.suffix:  # matplotlib would add one to the name
        raise UserError(f"{path} must end in .png, .pdf or .svg: the ending is the kind of the picture")
    try:
        figure.savefig(path, dpi=110)
    except ValueError as error:
        raise UserError(f"{path}: {error}".splitlines()[0]) from error
    finally:
        plt.close(figure)
