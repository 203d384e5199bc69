"""Draw the curves of several runs together: loss and validation accuracy over the steps.

python scripts/compare_runs.py outputs/crash_adamw outputs/crash_adamw2 --plot compare.png
python scripts/compare_runs.py outputs/quickstart --reference conf/experiment/quickstart.json
python scripts/compare_runs.py outputs/seed_0 outputs/seed_1 --write-reference conf/experiment/NAME.json

Reads each run's metrics.jsonl, prints the results at the end of each run, and draws the curves. Runs are named after
their folders. If folder names are equal, more of the path is shown.

With --reference it also compares each run with the curve of earlier runs of its recipe, epoch by epoch, and says
whether it is on track. --write-reference makes such a curve from finished runs that differ in their seeds only. Runs of
the recipe find it in conf/experiment/ and conf/recipe/, and say after each validation whether they are on track.
"""

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.errors import UserError
from engine.reference import Reference, unlike
from scripts.common.command_line import command, parser_of
from scripts.common.course import Course, write_reference
from scripts.common.pictures import plt, save
from scripts.common.tables import head, row

MOST_SHOWN = 5  # differences in an error message
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


def with_metrics(folders: list[Path]) -> list[Path]:
    """Leave out folders without metrics, such as those of starts that were refused, unless there is no other."""
    found = [folder for folder in folders if (folder / "metrics.jsonl").is_file()]
    if found:
        for folder in (folder for folder in folders if folder not in found):
            print(f"left out: {folder} has no metrics.jsonl", file=sys.stderr)
    return found or folders


def read(folder: Path) -> Run:
    """Read a run's metrics.

    Raises:
        UserError: if the folder is not a run, has no training metrics yet, or a line of its metrics is damaged.
    """
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"{folder} is not a run: it has no metrics.jsonl")
    lines: dict[str, list[dict[str, Any]]] = {split: [] for split in NEEDED}
    texts = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
            split = line["split"]
            for key in NEEDED[split]:
                float(line[key] or 0)  # null stands for a number that is not finite
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            if number == len(texts):  # what follows the last line break is empty or an incomplete line
                break
            raise UserError(
                f"line {number} of {path} is not a line of metrics: it lacks a split with its numbers"
            ) from None
        lines[split].append(line)
    if not lines["train"]:
        raise UserError(f"{folder} has no training steps in its metrics.jsonl yet")
    return Run(folder.resolve(), lines["train"], lines["val"])


def names(runs: list[Run]) -> list[str]:
    """Return the shortest endings of the runs' paths that are all different. A folder given twice keeps equal names."""
    paths = [run.folder.parts for run in runs]
    length = 1
    while len({path[-length:] for path in paths}) < len(set(paths)):
        length += 1
    return ["/".join(path[-length:]) for path in paths]


def table(runs: list[Run]) -> str:
    """Return a Markdown table: for each run the last step, its loss, the last accuracy and the best."""
    rows = [head("run", "steps", "training loss", "top-1, %", "best top-1, %")]
    for name, run in zip(names(runs), runs, strict=True):
        accuracies = [line["top1"] for line in run.val]
        last = accuracies[-1] if accuracies else None
        best = max((value for value in accuracies if value is not None), default=None)
        end = run.train[-1]
        rows.append(row(name, end["step"], _number(end["loss"], 4), _number(last, 2), _number(best, 2)))
    return "\n".join(rows)


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def beside(course: Course, reference: Reference) -> str:
    """Return a Markdown table of a run and the reference after each epoch that both have, and the verdict below it.

    Raises:
        UserError: if the run trained something else, or they have no epoch in common.
    """
    if found := unlike(reference, course.setting):
        more = f" and {len(found) - MOST_SHOWN} more" if len(found) > MOST_SHOWN else ""
        raise UserError(
            f"{course.folder} trains something else than {reference.path} (there → here): "
            f"{', '.join(found[:MOST_SHOWN])}{more}; compare it with another run, without --reference"
        )
    verdict = reference.verdict(course.curve)
    compared = ("reference", "difference")
    rows = [head("epoch", "top-1, %", *compared, "training loss", *compared)]
    for epoch in reference.shared_epochs(course.curve):
        top1 = _beside(course.curve.top1[epoch], reference.top1(epoch), 2)
        rows.append(row(epoch, *top1, *_beside(course.curve.loss[epoch], reference.loss(epoch), 4)))
    return "\n".join([*rows, "", verdict])


def _beside(value: float | None, expected: float | None, digits: int) -> tuple[str, str, str]:
    signed = "–" if value is None or expected is None else f"{value - expected:+.{digits}f}"
    return _number(value, digits), _number(expected, digits), signed


def draw(runs: list[Run], path: Path, reference: Reference | None = None) -> None:
    """Draw training loss and validation accuracy of all runs into a file. Each run has its own kind of line.

    The reference is a dashed line, with a band from its worst run to its best. Its loss is the mean of an epoch, so it
    is drawn in the middle of the epoch.
    """
    size = (11, 4.2 + 0.11 * len(runs))  # the legend has two columns
    figure, (losses, accuracies) = plt.subplots(1, 2, figsize=size, constrained_layout=True)
    lines = []
    for run in runs:  # null becomes NaN, which leaves a gap
        losses.plot(*_curve(run.train, "loss"), lw=1)
        lines += accuracies.plot(*_curve(run.val, "top1"), marker=".")
    if reference is not None:
        length, dashed = reference.setting["steps_per_epoch"], {"ls": "--", "color": "black", "lw": 1}
        train = [{"step": (epoch - 0.5) * length, "loss": reference.loss(epoch)} for epoch in reference.curves[0].loss]
        val = [{"step": epoch * length, "top1": reference.top1(epoch)} for epoch in reference.curves[0].top1]
        losses.plot(*_curve(train, "loss"), **dashed)
        lines += accuracies.plot(*_curve(val, "top1"), **dashed)
        ranges = [reference.range(epoch) for epoch in reference.curves[0].top1]
        accuracies.fill_between([line["step"] for line in val], *zip(*ranges, strict=True), color="black", alpha=0.15)
    labels = names(runs) + (["reference"] if reference else [])
    losses.set(title="training loss", xlabel="step", ylabel="loss")
    accuracies.set(title="validation accuracy", xlabel="step", ylabel="top-1, %")
    for axis in (losses, accuracies):
        axis.grid(alpha=0.3)
    # Without the lines, matplotlib leaves out names that begin with _.
    figure.legend(lines, labels, loc="outside lower center", ncols=2)
    save(figure, path)


def _curve(lines: list[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    return [line["step"] for line in lines], [math.nan if line[key] is None else line[key] for line in lines]


@command
def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="directory of a run")
    parser.add_argument(
        "--plot", type=Path, default=Path("compare.png"), help="picture to write (default: %(default)s)"
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--reference", type=Path, metavar="FILE", help="say whether the runs follow this curve")
    kind.add_argument("--write-reference", type=Path, metavar="FILE", help="write the curve of these finished runs")
    args = parser.parse_args()
    args.runs = with_metrics(args.runs)
    runs = [read(folder) for folder in args.runs]
    if args.write_reference:
        write_reference(args.write_reference, [Course.of(folder) for folder in args.runs])
        print(f"the reference is in {args.write_reference}")
        return
    print(table(runs))
    reference = Reference.read(args.reference) if args.reference else None
    if reference is not None:
        for name, folder in zip(names(runs), args.runs, strict=True):
            print(f"\n{name} beside {reference.path}:\n\n{beside(Course.of(folder), reference)}")
    draw(runs, args.plot, reference)
    print(f"\ndrawn in {args.plot}")


if __name__ == "__main__":
    sys.exit(main())
