"""Pass the readings of the stability monitor to the metrics, the log and the pictures of a run."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

from torch import Tensor

from engine.callbacks.callback import Callback, Callbacks
from engine.callbacks.plots import draw_heat_maps
from engine.json_text import to_json
from engine.line_file import LineFile
from engine.run import RunLength
from engine.run_dir import RunDirectory
from engine.warn_on_failure import warn_on_failure
from stability import StabilityMonitor, StabilityReport

log = logging.getLogger(__name__)

# How each kind is reduced over the layers to one number: the extreme that is worst, or the median.
SUMMARIES: dict[str, dict[str, Callable[[list[float]], float]]] = {
    "sigma": {"max": max},
    "gradient": {"max": max, "median": median},
    "update": {"max": max, "median": median},
    "gain": {"max": max},
    "alpha": {"median": median},
    "activation": {"max": max},
    "diversity": {"min": min},
    "entropy": {"min": min, "median": median},
    "rank": {"min": min, "median": median},
    "sec": {"max": max, "median": median},
}
FAILED = "the instruments cannot be read"
WORST_IS_LOW = ("diversity", "entropy", "rank")
MOST_SENT = 20  # pictures that loggers get, spread over the run: they keep all of them, and each grows with the run
LINES = ("activation", "alpha", "diversity", "entropy", "rank", "sec")  # kinds that loggers plot for each layer


def is_due(every: int, step: int) -> bool:
    """Whether a step has a reading, with so many steps between readings; 0: none."""
    return every > 0 and step % every == 0


class Instruments(Callback):
    """Reads the instruments every few steps, around the update of the weights, and records the readings.

    Only the first process has them.

    Args:
        monitor: takes the readings.
        every: steps between readings; 0: none.
        directory: directory of the run.
        length: length of the run in steps and epochs.
        callbacks: get each reading and picture.
    """

    def __init__(
        self, monitor: StabilityMonitor, every: int, directory: RunDirectory, length: RunLength, callbacks: Callbacks
    ):
        self.monitor, self.every, self.directory = monitor, every, directory
        self.length, self.callbacks = length, callbacks
        self.lines = LineFile(directory.stability)
        self.warned: set[tuple[str, int]] = set()
        self.sent, self.sent_part = 0, -1  # the last reading in a picture that loggers got, and its part of the run

    @contextmanager
    def watch_update(self, step: int, images: Tensor) -> Iterator[None]:
        """Take a reading around an update if one is due, see ``engine.step.UpdateWatcher``.

        If an instrument fails, there is no reading and the run continues.
        """
        has_begun = False
        if is_due(self.every, step):
            with warn_on_failure(FAILED):
                self.monitor.before_update(images)
                has_begun = True
        yield
        if has_begun:
            with warn_on_failure(FAILED):
                self._record(self.monitor.after_update(), step)

    def _record(self, report: StabilityReport, step: int) -> None:
        """Record a reading in the metrics and in ``stability.jsonl``. Warn if attention heads have collapsed."""
        place = self.length.place(step)
        layers = {kind: {name: _round(v) for name, v in by_name.items()} for kind, by_name in report.layers.items()}
        self.lines.add(to_json(place | {"layers": layers, "collapsed": report.collapsed}))
        self._warn(report, step)
        self.callbacks.on_line({"split": "stability"} | place | summary(report) | {"seconds": report.seconds})
        self.callbacks.on_line({"split": "layers"} | place | of_each_layer(report.layers))

    def on_line(self, line: dict[str, Any]) -> None:
        """Draw the readings after each validation."""
        if line["split"] == "val":
            self._draw()

    def on_end(self) -> None:
        """Draw all readings once more at the end."""
        self._draw(is_last=True)

    def _draw(self, is_last: bool = False) -> None:
        """Draw all layers over the steps in ``plots/stability.png``. Loggers get only some of these pictures."""
        path = self.directory.plots / "stability.png"
        with warn_on_failure(f"{path} cannot be drawn"):
            readings = self.directory.read_stability()
            if len(readings) > 1:
                draw_heat_maps(worst_of_layers(readings), [reading["step"] for reading in readings], path)
                step = readings[-1]["step"]
                part = MOST_SENT * step // self.length.stop_at
                if (is_last or part > self.sent_part) and step > self.sent:
                    self.sent, self.sent_part = step, part
                    self.callbacks.on_picture("stability", path, step)

    def _warn(self, report: StabilityReport, step: int) -> None:
        heads = {(name, head) for name, found in report.collapsed.items() for head in found}
        new = sorted(heads - self.warned)
        self.warned |= heads
        if not new:
            return
        name, head = new[0]
        entropy, rank, sec = (report.layers[kind][name][head] for kind in ("entropy", "rank", "sec"))
        others = f" and {len(new) - 1} more" if len(new) > 1 else ""
        log.warning(
            "step %d: attention collapses in %s, head %d%s (entropy %.2f, rank %.2f, energy in few directions %.2f): "
            "a crash is forming; try optim=adamw2, or a lower optim.lr",
            *(step, name, head, others, entropy, rank, sec),
        )


def of_each_layer(layers: Mapping[str, Mapping[str, Sequence[float | None]]]) -> dict[str, float | None]:
    """Return one number per layer of a reading, which loggers plot over the steps."""
    return {f"{kind}/{name}": worst(kind, values) for kind in LINES for name, values in layers.get(kind, {}).items()}


def summary(report: StabilityReport) -> dict[str, Any]:
    """Reduce a reading to a few numbers, such as ``sigma_max``, its layer ``sigma_max_of``, and the collapsed heads."""
    line: dict[str, Any] = {}
    for kind, ways in SUMMARIES.items():
        by_layer = report.layers.get(kind, {}).items()
        finite = {name: value for name, heads in by_layer if (value := worst(kind, heads)) is not None}
        for way, function in ways.items() if finite else ():
            line[f"{kind}_{way}"] = value = function(list(finite.values()))
            if way != "median":
                line[f"{kind}_{way}_of"] = next(name for name, found in finite.items() if found == value)
    return line | {"collapsed": sum(len(heads) for heads in report.collapsed.values())}


def worst(kind: str, heads: Sequence[float | None]) -> float | None:
    """Return a layer's number, which is that of its worst head; None if any head's number is not finite."""
    finite = [value for value in heads if value is not None and math.isfinite(value)]
    if len(finite) < len(heads):
        return None
    return min(finite) if kind in WORST_IS_LOW else max(finite)


def worst_of_layers(readings: list[dict[str, Any]]) -> dict[str, dict[str, list[float | None]]]:
    """Return, for each kind and layer, the layer's number in every reading of ``stability.jsonl``."""
    kinds = {kind: list(names) for kind, names in readings[-1]["layers"].items()}
    return {
        kind: {name: [_at(reading, kind, name) for reading in readings] for name in names}
        for kind, names in kinds.items()
    }


def _at(reading: dict[str, Any], kind: str, name: str) -> float | None:
    heads = reading["layers"].get(kind, {}).get(name)
    return worst(kind, heads) if heads else None


def _round(values: list[float]) -> list[float | None]:
    """Round to five significant digits to keep the lines short. Numbers that are not finite become None."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values]
