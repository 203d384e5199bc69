"""The run that the clusters train, and what its files tell of it."""

import re
import time
from collections.abc import Callable
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from tests.runs import NO_LOCAL_NOISE, checkpoint, metrics

# The quickstart with a model whose steps take milliseconds, for less than an epoch.
STEPS = 60
SMALL = (
    *("experiment=quickstart", "data.backend=torch", "max_workers=0", f"max_steps={STEPS}", "checkpoint.every_steps=5"),
    *("model.depths=[1,1]", "model.embed_dim=12", "model.num_heads=[1,2]", "batch_size=32", "augment.mix_group=1"),
    *("augment.mixup=0", "augment.cutmix=0", "optim.lr=1e-3", "log_every=1", "monitor.every=0", "logger=none"),
    *("device=cpu", "amp=fp32", *NO_LOCAL_NOISE),
)


def wait_for(condition: Callable[[], object], what: str, seconds: float = 180) -> None:
    """Wait until a condition is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"after {seconds} seconds: {what}"
        time.sleep(0.1)


def steps(run_dir: Path) -> list[int]:
    """The steps in a run's metrics, in the order of the file."""
    written = (run_dir / "metrics.jsonl").is_file()
    return [line["step"] for line in metrics(run_dir, "train")] if written else []


def assert_every_step_once(run_dir: Path, last: int = STEPS) -> None:
    """All steps are in one file of metrics, and none is there twice."""
    assert steps(run_dir) == list(range(1, last + 1))
    assert [file.name for file in run_dir.glob("metrics*")] == ["metrics.jsonl"]
    assert checkpoint(run_dir)["step"] == last


def lost(run_dir: Path) -> str:
    """Each time that a run came no further for more than 3 seconds, and how many steps it computed again."""
    lines = re.findall(r"^(\S+ \S+) INFO epoch \S+  step (\d+)  loss", (run_dir / "train.log").read_text(), re.M)
    first: dict[int, datetime] = {}  # when each step was done for the first time
    for moment, step in lines:
        first.setdefault(int(step), datetime.strptime(moment, "%Y-%m-%d %H:%M:%S,%f"))
    between = [(after - before).total_seconds() for before, after in pairwise(first[step] for step in sorted(first))]
    pauses = " + ".join(f"{seconds:.1f}" for seconds in between if seconds > 3) or "0"
    return f"lost {pauses} s and {len(lines) - len(first)} steps"
