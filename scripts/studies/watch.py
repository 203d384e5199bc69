"""What happens inside some trainings of a study: instruments over the steps, healthy and crashing ones side by side."""

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # imported after choosing a backend that needs no display

from scripts.studies import smoothness
from scripts.studies.origin import commit_now
from scripts.studies.study import Cell, Study
from scripts.studies.training import Trainer, forget

EVERY = 6  # steps between two readings
STYLES = ("-", "--", ":", "-.", (0, (5, 1)), (0, (1, 1)))  # lines that differ without colour


@dataclass(frozen=True)
class Seen:
    """One number of one watched training.

    Attributes:
        training: labels of its cell.
        step: optimizer step.
        key: name of the number in ``metrics.jsonl`` or ``smoothness.jsonl``.
        value: the number.
        commit: the project's commit.
    """

    training: str
    step: int
    key: str
    value: float
    commit: str


def watched_cells(study: Study) -> list[Cell]:
    """The cells that the study file lists under ``watch``, with the instruments on, and with its ``options``."""
    cells = {tuple(cell.place.values()): cell for cell in study.cells() if cell.seed == study.seeds[0]}
    chosen = [cells[tuple(str(label) for label in labels)] for labels in study.watch.get("cells", ())]
    more = (f"monitor.every={EVERY}", "log_every=2", *study.watch.get("options", ()))
    return [replace(cell, options=(*cell.options, *more)) for cell in chosen]


def watch(study: Study, folder: Path, runs: Path, at_once: int, threads: int) -> None:
    """Train the watched cells that ``watched.csv`` lacks, add what they show, and draw it.

    Args:
        study: the study.
        folder: of the study's results.
        runs: of the run directories.
        at_once: trainings at the same time.
        threads: of each training.
    """
    table, keys = folder / "watched.csv", study.watch.get("keys", ())
    seen = read_seen(table)
    done = {entry.training for entry in seen}
    missing = [cell for cell in watched_cells(study) if _title(cell) not in done]
    trainer = Trainer(runs / "watched", study.crash_below, threads)
    for cell, _ in trainer.train_all(missing, at_once):
        run_dir = trainer.folder / cell.name
        for line in _lines(run_dir):
            found = [key for key in keys if isinstance(line.get(key), int | float)]
            seen += [Seen(_title(cell), line["step"], key, line[key], commit_now()) for key in found]
        forget(run_dir)
        _write(table, seen)
    if seen:
        draw_watched(study, seen, folder / "watched.png")


def read_seen(table: Path) -> list[Seen]:
    """Read ``watched.csv``; nothing if it is not there."""
    if not table.is_file():
        return []
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [Seen(r["training"], int(r["step"]), r["key"], float(r["value"]), r["commit"]) for r in rows]


def draw_watched(study: Study, seen: Sequence[Seen], path: Path) -> None:
    """Draw a panel for each key, and in it a line for each training."""
    keys = [key for key in study.watch["keys"] if any(entry.key == key for entry in seen)]
    trainings = list(dict.fromkeys(entry.training for entry in seen))
    figure, panels = plt.subplots(
        len(keys), 1, figsize=(8, 0.8 + 1.9 * len(keys)), sharex=True, squeeze=False, constrained_layout=True
    )
    for panel, key in zip(panels[:, 0], keys, strict=True):
        for training, style in zip(trainings, STYLES * len(trainings), strict=False):
            points = [(entry.step, entry.value) for entry in seen if (entry.training, entry.key) == (training, key)]
            if points:
                panel.plot(*zip(*points, strict=True), linestyle=style, linewidth=1.4, label=training)
        panel.set_ylabel(key.replace("_", " "))
    panels[-1, 0].set_xlabel("step")
    found = [pair for panel in panels[:, 0] for pair in zip(*panel.get_legend_handles_labels(), strict=True)]
    by_label = {label: line for line, label in found}
    figure.legend(by_label.values(), by_label.keys(), loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _lines(run_dir: Path) -> list[dict[str, Any]]:
    """What a training wrote during its steps."""
    files = [path for path in (run_dir / "metrics.jsonl", run_dir / smoothness.FILE) if path.is_file()]
    lines = [json.loads(line) for path in files for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line.get("split") != "val"]


def _title(cell: Cell) -> str:
    return ", ".join(cell.place.values())


def _write(table: Path, seen: Sequence[Seen]) -> None:
    table.parent.mkdir(parents=True, exist_ok=True)
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Seen)], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**asdict(entry), "value": f"{entry.value:.6g}"} for entry in seen)
