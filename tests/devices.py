"""Tests that run on a GPU: ``make test-gpu`` selects them by their marker, and lists what ran."""

from collections.abc import Iterable

import pytest
import torch

DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu))
# A test with this mark runs on the CPU, and on a GPU where there is one.
on_devices = pytest.mark.parametrize("device", DEVICES)
# The same for two processes, each of which needs a GPU of its own.
in_two_processes = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu(2))])
EXACT, ROUNDING = 0.0, 1e-2  # how far apart the losses of two equal runs may be on a CPU and on a GPU


def run_on(device: str) -> tuple[str, ...]:
    """The options of a run on a device. A GPU compiles by default, which takes a minute; tests of that ask for it."""
    return (f"device={device}", "compile=false")


def tolerance(device: str) -> float:
    """How far apart the losses of two equal runs may be: some kernels of GPUs add up in a different order each time."""
    return EXACT if device == "cpu" else ROUNDING


def skip_without_gpus(items: Iterable[pytest.Item]) -> None:
    """Skip the tests with the marker ``gpu`` where there are too few GPUs; ``gpu(2)`` needs two."""
    available = torch.cuda.device_count()
    for item in items:
        if mark := item.get_closest_marker("gpu"):
            needed = mark.args[0] if mark.args else 1
            if needed > available:
                item.add_marker(pytest.mark.skip(reason="needs a GPU" if needed == 1 else f"needs {needed} GPUs"))


def table(stats: dict[str, list[pytest.TestReport]]) -> list[str]:
    """The lines of a table with what ran on the GPU, by file."""
    columns = {"passed": "passed", "failed": "failed", "error": "failed", "skipped": "skipped"}  # by outcome
    rows: dict[str, dict[str, float]] = {}
    for outcome, column in columns.items():
        for report in (each for each in stats.get(outcome, []) if isinstance(each, pytest.TestReport)):
            empty = {"passed": 0, "failed": 0, "skipped": 0, "seconds": 0.0}
            row = rows.setdefault(report.nodeid.partition("::")[0], empty)
            row[column] += 1
            row["seconds"] += report.duration
    lines = [f"{'passed':>6} {'failed':>6} {'skipped':>7} {'seconds':>7}  file"]
    for file, row in sorted(rows.items()):
        lines.append("{passed:6} {failed:6} {skipped:7} {seconds:7.1f}  {file}".format(**row, file=file))
    return lines
