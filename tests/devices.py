"""Tests that run on a GPU: ``make test-gpu`` selects them by their marker, and lists what ran."""

from collections.abc import Iterable

import pytest
import torch

# A test with this mark runs on the CPU, and on a GPU where there is one.
on_devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
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
    rows: dict[str, dict[str, float]] = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in (each for each in stats.get(outcome, []) if isinstance(each, pytest.TestReport)):
            row = rows.setdefault(report.nodeid.partition("::")[0], dict.fromkeys(("passed", "failed", "skipped"), 0))
            row[outcome if outcome != "error" else "failed"] += 1
            row["seconds"] = row.get("seconds", 0) + report.duration
    lines = [f"{'passed':>6} {'failed':>6} {'skipped':>7} {'seconds':>7}  file"]
    for file, row in sorted(rows.items()):
        lines.append(
            f"{row['passed']:6.0f} {row['failed']:6.0f} {row['skipped']:7.0f} {row.get('seconds', 0):7.1f}  {file}"
        )
    return lines
