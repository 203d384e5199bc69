"""Pictures of matplotlib, on a machine that may have no display."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # imported after choosing a backend that needs no display

__all__ = ["plt", "save"]


def save(figure: Any, path: Path) -> None:
    """Write a figure into a file, and free its memory."""
    figure.savefig(path, dpi=110)
    plt.close(figure)
