"""Choose τ for AdamW² from healthy runs: measure AdamW's steps relative to the matrices that they change.

python train.py experiment=quickstart name=healthy optim=adamw2 optim.tau=1e9 schedule.warmup_epochs=1 log_every=5
python scripts/choose_tau.py outputs/healthy

Train each run with optim.tau=1e9, which measures without capping, and with a warm-up that keeps the run healthy. The
ratio of a matrix is lr·σ₁(u)/σ₁(W). For each step after the warm-up, the script takes the 99th percentile over the
matrices. It prints the median and a high percentile of these values over the steps, and draws the ratios. A τ below the
high percentile caps steps that did no harm.
"""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.errors import UserError
from engine.options.plain import flatten
from engine.run_dir import RunDirectory
from scripts.common.command_line import command, parser_of
from scripts.common.pictures import plt, save
from scripts.common.tables import head, row

# By key what the line shows; the one that decides is drawn over the largest, from which it hardly differs.
KINDS = {"step_ratio_median": "median", "step_ratio_max": "largest", "step_ratio_p99": "99th percentile"}


def readings(run: Path) -> tuple[list[dict[str, Any]], float]:
    """Return the lines of a run's metrics with ratios, and the number of warm-up epochs.

    Raises:
        UserError: if the folder is not a run that measured ratios without capping.
    """
    directory = RunDirectory(run)
    for file in (directory.metrics, directory.config):
        if not file.is_file():
            raise UserError(f"{run} is not a run: it has no {file.name}")
    config = flatten(directory.settings())
    measured = [line for line in directory.read_metrics() if line.get("step_ratio_p99") is not None]
    other = UserError(f"{run} was not trained with optim=adamw2 optim.tau=1e9, which measures but caps nothing")
    if config.get("optim.name") != "adamw2" or not measured:
        raise other
    for name in ("optim.tau", "schedule.warmup_epochs"):
        if not isinstance(config.get(name), int | float):
            raise UserError(f"{directory.config} is damaged ({name} is {config.get(name)}, and no number): restore it")
    if config["optim.tau"] < 1e9:
        raise other
    return measured, config["schedule.warmup_epochs"]


def after_warmup(lines: list[dict[str, Any]], warmup: float) -> list[float]:
    """Return the 99th percentile over the matrices at each step after the warm-up.

    Raises:
        UserError: if the run ended before the end of its warm-up.
    """
    after = [line["step_ratio_p99"] for line in lines if line["epoch"] > warmup]
    if not after:
        raise UserError("the run has no steps after its warm-up: train longer")
    return after


def rounded_up(value: float) -> float:
    """Return the smallest number with three digits that is not below a value: a smaller τ would cap more steps."""
    if value <= 0:
        return 0.0
    digit = 10 ** (math.floor(math.log10(value)) - 2)
    return math.ceil(round(value / digit, 6)) * digit


def draw(runs: dict[str, tuple[list[dict[str, Any]], float]], path: Path) -> None:
    """Draw the ratios of each run over the epochs, with the warm-up shaded."""
    columns = min(len(runs), 2)
    rows = -(-len(runs) // columns)
    size = (max(6.0, 5.5 * columns), 0.4 + 3.5 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, sharey=True, constrained_layout=True)
    for axis in axes.flat[len(runs) :]:
        axis.axis("off")
    for axis, (name, (lines, warmup)) in zip(axes.flat, runs.items(), strict=False):
        epochs = [line["epoch"] for line in lines]
        for kind, label in KINDS.items():
            axis.semilogy(epochs, [line[kind] for line in lines], label=label, lw=1)
        axis.axvspan(0, warmup, alpha=0.15, color="grey", label="warm-up")
        axis.set(title=name, xlabel="epoch")
        axis.grid(alpha=0.3)
    for axis in axes[:, 0]:
        axis.set_ylabel("lr · σ₁(u) / σ₁(W)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), title="over matrices", loc="outside lower center", ncols=4)
    save(figure, path)


def percent(text: str) -> float:
    """Parse a number from 0 to 100.

    Raises:
        ArgumentTypeError: if the text is no such number.
    """
    try:
        if 0 <= (value := float(text)) <= 100:
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"'{text}' is not a number from 0 to 100")


@command
def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="directories of runs")
    parser.add_argument("--percentile", type=percent, default=99.0, help="of the steps after the warm-up")
    parser.add_argument("--plot", type=Path, default=Path("tau.png"))
    args = parser.parse_args()
    runs = {str(run): readings(run) for run in args.runs}
    found = {name: after_warmup(*run) for name, run in runs.items()}
    draw(runs, args.plot)
    print(head("run", "median step", f"{args.percentile:g} % of the steps below"))
    highs = {name: float(np.percentile(ratios, args.percentile)) for name, ratios in found.items()}
    for name, ratios in found.items():
        print(row(name, f"{np.median(ratios):.4f}", f"{highs[name]:.4f}"))
    tau = rounded_up(max(highs.values()))
    print(f"\nτ = {tau:.3g} would have capped more than 1 % of the matrices:")
    for name, ratios in found.items():
        print(f"  {name}: in {sum(ratio > tau for ratio in ratios)} of {len(ratios)} steps that were read")
    print(f"drawn in {args.plot}")


if __name__ == "__main__":
    sys.exit(main())
