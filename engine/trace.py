"""What a trace says about a step: where the host's time went, and whether the device had work."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TRACE = Path("profile", "trace.json")  # in a run's folder
PARTS = ("data wait", "augment", "forward", "backward", "update")
DEVICE_WORK = {"kernel", "gpu_memcpy", "gpu_memset"}  # categories of events in torch's traces

Interval = tuple[float, float]


@dataclass(frozen=True)
class StepTimes:
    """Means over the steps of a trace; shares are of the whole time.

    Attributes:
        steps: in the trace.
        milliseconds: of a step.
        shares: of the host's time in each of ``PARTS``. On a GPU the host only hands out work in most of them.
        device_idle: share of the time in which the GPU did nothing; None without a GPU.
        device_starved: of that, the part in which the host waited for data.
    """

    steps: int
    milliseconds: float
    shares: dict[str, float]
    device_idle: float | None
    device_starved: float | None


def read_trace(path: Path) -> StepTimes:
    """Read a trace that ``profile=true`` left.

    Raises:
        ValueError: if it is no such trace, or one of an older version, without the parts of a step.
    """
    try:
        events = [
            event for event in json.loads(path.read_text(encoding="utf-8"))["traceEvents"] if event.get("ph") == "X"
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no trace: train with profile=true first") from error
    marks = [event for event in events if event.get("cat") == "user_annotation"]
    steps = [_interval(event) for event in marks if event["name"].startswith("ProfilerStep")]
    parts = {part: _union(_interval(event) for event in marks if event["name"] == part) for part in PARTS}
    if not steps or not parts["data wait"]:
        raise ValueError(f"{path} does not name the parts of a step: train with profile=true anew")
    window = (min(start for start, _ in steps), max(end for _, end in steps))
    whole = window[1] - window[0]
    shares = {part: _overlap(found, [window]) / whole for part, found in parts.items()}
    busy = _union(_interval(event) for event in events if event.get("cat") in DEVICE_WORK)
    if not busy:
        return StepTimes(len(steps), whole / len(steps) / 1e3, shares, None, None)
    idle = _gaps(busy, window)
    starved = _overlap(idle, parts["data wait"])
    return StepTimes(len(steps), whole / len(steps) / 1e3, shares, _length(idle) / whole, starved / whole)


def _interval(event: dict[str, Any]) -> Interval:
    """Start and end in microseconds."""
    return event["ts"], event["ts"] + event["dur"]


def _union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same time as intervals that do not overlap, in order."""
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _gaps(busy: list[Interval], window: Interval) -> list[Interval]:
    """The time of the window that is in none of the intervals."""
    edges = [(window[0], window[0]), *busy, (window[1], window[1])]
    between = zip((end for _, end in edges), (start for start, _ in edges[1:]), strict=False)
    clipped = ((max(start, window[0]), min(end, window[1])) for start, end in between)
    return [(start, end) for start, end in clipped if start < end]


def _overlap(first: list[Interval], second: list[Interval]) -> float:
    """Time in both of two lists of intervals, of which neither overlaps with itself."""
    return sum(max(0.0, min(a[1], b[1]) - max(a[0], b[0])) for a in first for b in second)


def _length(intervals: list[Interval]) -> float:
    return sum(end - start for start, end in intervals)
