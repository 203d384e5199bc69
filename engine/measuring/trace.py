"""Read a profiler trace: how the host spent the time of a step, and how long the GPU was idle."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TRACE = Path("profile", "trace.json")  # path of the trace in a run's folder
PARTS = ("data wait", "augment", "forward", "backward", "update")
DEVICE_WORK = {"kernel", "gpu_memcpy", "gpu_memset"}  # categories of events in torch's traces

Interval = tuple[float, float]


@dataclass(frozen=True)
class StepTimes:
    """Means over the steps of a trace. All shares are shares of the whole time of these steps.

    Attributes:
        steps: number of steps in the trace.
        milliseconds: duration of a step.
        shares: share of the time that the host spent in each of ``PARTS``. With a GPU the host mostly launches kernels.
        kernels: number of kernels, copies and fills of the GPU in a step; None without a GPU.
        device_idle: share of the time in which the GPU was idle; None without a GPU.
        device_starved: share of the time in which the GPU was idle while the host waited for data; None without a GPU.
    """

    steps: int
    milliseconds: float
    shares: dict[str, float]
    kernels: float | None
    device_idle: float | None
    device_starved: float | None


def read_trace(path: Path) -> StepTimes:
    """Read a trace that a run with ``profile=true`` wrote.

    Raises:
        ValueError: if the file is not such a trace, or comes from an older version that did not name the parts of
            a step.
    """
    try:
        events = [
            event for event in json.loads(path.read_text(encoding="utf-8"))["traceEvents"] if event.get("ph") == "X"
        ]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is not a trace: train with profile=true first") from error
    marks = [event for event in events if event.get("cat") == "user_annotation"]
    steps = [_interval(event) for event in marks if event["name"].startswith("ProfilerStep")]
    parts = {part: _union(_interval(event) for event in marks if event["name"] == part) for part in PARTS}
    if not steps or not parts["data wait"]:
        raise ValueError(f"{path} does not name the parts of a step: train with profile=true again")
    window = (min(start for start, _ in steps), max(end for _, end in steps))
    whole = window[1] - window[0]
    shares = {part: _overlap(found, [window]) / whole for part, found in parts.items()}
    work = [_interval(event) for event in events if event.get("cat") in DEVICE_WORK]
    if not work:
        return StepTimes(len(steps), whole / len(steps) / 1e3, shares, None, None, None)
    kernels = sum(window[0] <= start < window[1] for start, _ in work) / len(steps)
    idle = _gaps(_union(work), window)
    starved = _overlap(idle, parts["data wait"])
    return StepTimes(len(steps), whole / len(steps) / 1e3, shares, kernels, _length(idle) / whole, starved / whole)


def _interval(event: dict[str, Any]) -> Interval:
    """Return the start and end of an event in microseconds."""
    return event["ts"], event["ts"] + event["dur"]


def _union(intervals: Iterable[Interval]) -> list[Interval]:
    """Merge overlapping intervals, and sort them."""
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _gaps(busy: list[Interval], window: Interval) -> list[Interval]:
    """Return the parts of the window that no interval covers."""
    edges = [(window[0], window[0]), *busy, (window[1], window[1])]
    between = zip((end for _, end in edges), (start for start, _ in edges[1:]), strict=False)
    clipped = ((max(start, window[0]), min(end, window[1])) for start, end in between)
    return [(start, end) for start, end in clipped if start < end]


def _overlap(first: list[Interval], second: list[Interval]) -> float:
    """Return the time that both lists cover. The intervals of each list must not overlap one another."""
    return sum(max(0.0, min(a[1], b[1]) - max(a[0], b[0])) for a in first for b in second)


def _length(intervals: list[Interval]) -> float:
    return sum(end - start for start, end in intervals)
