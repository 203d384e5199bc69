"""A real run of three steps, its continuation, and a run as a GPU trains ImageNet: compiled and in 16 bits."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from engine.device import half_precision
from scripts.machine.row import Row

TRAIN = Path(__file__).resolve().parents[2] / "train.py"
PATIENCE = 600  # seconds for each part; compiling takes minutes on a slow host
COMPILED = ("compile=true", "model.depths=[1,1]")


def check(compiles: bool = False) -> Iterator[Row]:
    """Yield the rows of this subject. ``compiles``: with a compiled run."""
    with TemporaryDirectory() as folder:
        yield part("run of 3 steps", Path(folder), 3)
        yield part("resumed for a 4th", Path(folder), 4)
    if compiles:
        with TemporaryDirectory() as folder:
            half = half_precision()
            row = part(f"compiled run in {half}", Path(folder), 3, f"amp={half}", *COMPILED)
        slower = "with compile=auto, runs train without torch.compile, half as fast"
        yield row if row.verdict == "ok" else replace(row, verdict="warn", advice=slower)


def part(name: str, folder: Path, steps: int, *further: str) -> Row:
    """Train the smallest model up to a step, as a user would."""
    options = ["experiment=quickstart", f"max_steps={steps}", "log_every=1", "logger=none", f"output_dir={folder}/run"]
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(TRAIN), *options, *further], cwd=folder, capture_output=True, text=True, timeout=PATIENCE
    )
    if done.returncode != 0:
        said = done.stderr.splitlines() or ["no message"]
        return Row(name, f"exit code {done.returncode} ({said[-1]})", "bad", "start make train to see all messages")
    lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    trained = [line["step"] for line in lines if line["split"] == "train"]
    if trained != list(range(1, steps + 1)):
        return Row(name, f"the run has the steps {trained}", "bad", "start make train to see all messages")
    return Row(name, f"works, in {time.perf_counter() - started:.0f} s")
