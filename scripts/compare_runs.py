"""Draw the curves of several runs together: loss and validation accuracy over the steps.

python scripts/compare_runs.py outputs/crash_adamw outputs/crash_adamw2 --plot compare.png

Reads each run's metrics.jsonl, prints the results at the end of each run, and draws the curves. Runs are named after
their folders. If folder names are equal, more of the path is shown.
"""

import argparse
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # imported after choosing a backend that needs no display

# The keys that each kind of line must have.
NEEDED: dict[str, tuple[str, ...]] = {"train": ("step", "loss"), "val": ("step", "top1"), "stability": ()}


@dataclass(frozen=True)
class Run:
    """The metrics of a run.

    Attributes:
        folder: folder of the run.
        train: lines of training steps; at least one.
        val: lines of validations.
    """

    folder: Path
    train: list[dict[str, Any]]
    val: list[dict[str, Any]]


def read(folder: Path) -> Run:
    """Read a run's metrics.

    Raises:
        ValueError: if the folder is not a run, has no training metrics yet, or a line of its metrics is damaged.
    """
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise ValueError(f"{folder} is not a run: it has no metrics.jsonl")
    lines: dict[str, list[dict[str, Any]]] = {split: [] for split in NEEDED}
    *texts, rest = path.read_text(encoding="utf-8", errors="replace").split("\n")
    if _is_json(rest):  # otherwise the rest is empty or an incomplete line
        texts.append(rest)
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
            split = line["split"]
            for key in NEEDED[split]:
                float(line[key] or 0)  # null stands for a number that is not finite
        except (ValueError, TypeError, KeyError):
            raise ValueError(
                f"line {number} of {path} is not a line of metrics: it lacks a split with its numbers"
            ) from None
        lines[split].append(line)
    if not lines["train"]:
        raise ValueError(f"{folder} has no training steps in its metrics.jsonl yet")
    return Run(folder.resolve(), lines["train"], lines["val"])


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def names(runs: list[Run]) -> list[str]:
    """Return the shortest endings of the runs' paths that are all different. A folder given twice keeps equal names."""
    paths = [run.folder.parts for run in runs]
    length = 1
    while len({path[-length:] for path in paths}) < len(set(paths)):
        length += 1
    return ["/".join(path[-length:]) for path in paths]


def table(runs: list[Run]) -> str:
    """Return a Markdown table: for each run the last step, its loss, the last accuracy and the best."""
    rows = ["| run | steps | training loss | top-1, % | best top-1, % |", "| --- | --- | --- | --- | --- |"]
    for name, run in zip(names(runs), runs, strict=True):
        accuracies = [line["top1"] for line in run.val]
        last = accuracies[-1] if accuracies else None
        best = max((value for value in accuracies if value is not None), default=None)
        end = run.train[-1]
        loss = _number(end["loss"], 4)
        rows.append(f"| {name} | {end['step']} | {loss} | {_number(last, 2)} | {_number(best, 2)} |")
    return "\n".join(rows)


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def draw(runs: list[Run], path: Path) -> None:
    """Draw training loss and validation accuracy of all runs into a file. Each run has its own colour."""
    figure, (losses, accuracies) = plt.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    # null becomes NaN, which leaves a gap.
    curves = [
        (
            *losses.plot(*_curve(run.train, "loss"), lw=1),
            *accuracies.plot(*_curve(run.val, "top1"), marker="."),
        )
        for run in runs
    ]
    losses.set(title="training loss", xlabel="step")
    accuracies.set(title="validation accuracy", xlabel="step", ylabel="top-1, %")
    for axis, lines in zip((losses, accuracies), zip(*curves, strict=True), strict=True):
        axis.grid(alpha=0.3)
        axis.legend(lines, names(runs))  # without the lines, matplotlib leaves out names that begin with _
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _curve(lines: list[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    return [line["step"] for line in lines], [math.nan if line[key] is None else line[key] for line in lines]


def main() -> int:
    sys.stdout.reconfigure(errors="backslashreplace")  # some terminals cannot show τ, σ or –
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="directory of a run")
    parser.add_argument(
        "--plot", type=Path, default=Path("compare.png"), help="picture to write (default: %(default)s)"
    )
    args = parser.parse_args()
    try:
        runs = [read(folder) for folder in args.runs]
        print(table(runs))
        draw(runs, args.plot)
    except (OSError, ValueError) as error:
        # This includes a plot file that cannot be written, and a file ending that matplotlib does not know.
        print(f"error: {error}".splitlines()[0], file=sys.stderr)
        return 2
    print(f"\ndrawn in {args.plot}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
