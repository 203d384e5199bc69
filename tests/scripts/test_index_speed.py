"""The benchmark of start times, on the index of 2 million images."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import PROJECT, environment


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads /proc")
def test_the_index_is_mapped_by_workers() -> None:
    """A worker has no copy of its own of the 0.1 GB that the index of 2 million images takes."""
    done = subprocess.run(
        [sys.executable, PROJECT / "scripts/bench/index_speed.py", "--images", "2000000"],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    rows = {
        line.split(",")[0]: [float(n) for n in re.findall(r"\d+(?:\.\d+)?", line[44:])]
        for line in done.stdout.splitlines()
    }
    start, worker = rows["start"], rows["data worker"]
    assert start[0] < 5
    assert start[1] < 400
    assert worker[2] < 20 < worker[1]
