"""The lines of metrics as loggers show them: those so far, the names of their values, and the best accuracy."""

from typing import Any

from engine.callbacks.instruments import of_each_layer
from engine.run_dir import RunDirectory


def lines_so_far(directory: RunDirectory) -> list[dict[str, Any]]:
    """Return the lines that callbacks were told since the beginning of a run, for a logger that the run gets later."""
    readings = directory.read_stability()
    layers = [{k: reading[k] for k in ("step", "epoch")} | of_each_layer(reading["layers"]) for reading in readings]
    return [*directory.read_metrics(), *({"split": "layers"} | line for line in layers)]


def tagged(line: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a line by the names that loggers show, such as ``train/loss``.

    Names of layers have no prefix.
    """
    prefix = "" if line["split"] == "layers" else f"{line['split']}/"
    return {f"{prefix}{name}": value for name, value in line.items() if name not in ("split", "step")}


def best_top1(before: float | None, line: dict[str, Any]) -> float | None:
    """Return the best top-1 accuracy after a line, in percent. A validation with logits that are not finite is ignored.

    Args:
        before: the best before this line; None if there was no validation.
        line: a line of metrics.
    """
    if line["split"] != "val" or line.get("not_finite"):
        return before
    return max(line["top1"], before or 0.0)
