"""What happens inside some trainings of a study: instruments over the steps, healthy and crashing ones side by side."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from engine.callbacks.instruments import of_each_layer
from engine.run_dir import RunDirectory
from scripts.common.pictures import look, plain_numbers, plt, save
from scripts.studies import smoothness
from scripts.studies.results import read_rows, write_rows
from scripts.studies.study import Cell, Study
from scripts.studies.training import Trainer, forget, visible_gpus

EVERY = 6  # steps between two readings
LOG_FROM = 10.0  # a panel whose largest value is this many times the smallest gets a logarithmic axis
WORDS = {
    "loss": "training loss",
    "gradient_max": "largest gradient\nof a matrix",
    "activation_max": "largest RMS of\na block's output",
    "sigma_max": "largest σ₁\nof a matrix",
    "local_lipschitz": "local Lipschitz\nconstant",
    "log10_bound": "log₁₀ of the\nLipschitz bound",
    "lr_factor_median": "effective over\nscheduled rate",
    "entropy_min": "lowest attention\nentropy",
    "rank_min": "lowest effective\nrank of attention",
    "sec_max": "most energy in\nfew directions",
    "diversity_min": "lowest token\ndiversity",
    "diversity": "diversity of the tokens in the output",
}


@dataclass(frozen=True)
class Seen:
    """One number of one watched training.

    Attributes:
        training: labels of its cell.
        recipe: eight digits that stand for the options of its cell, see :class:`Cell`.
        step: optimizer step.
        key: name of the number in ``metrics.jsonl`` or ``smoothness.jsonl``. ``KIND/LAYER`` is the last one of a layer
            in ``stability.jsonl``.
        value: the number.
        commit: the project's commit.
    """

    training: str
    recipe: str
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
    """Train the watched cells that ``watched.csv`` lacks, and add what they show.

    Args:
        study: the study.
        folder: of the study's results.
        runs: of the run directories.
        at_once: trainings at the same time.
        threads: of each training.
    """
    table, keys, kinds = folder / "watched.csv", study.watch.get("keys", ()), study.watch.get("layers", ())
    seen = read_seen(table)
    done, recipes = {entry.recipe for entry in seen}, _recipes(study)
    missing = [cell for cell in watched_cells(study) if recipes[_title(cell)] not in done]
    trainer = Trainer(runs / "watched", study.crash_below, threads, visible_gpus())
    for cell, outcome in trainer.train_all(missing, at_once):
        run_dir = trainer.folder / cell.run_name
        found = [*_over_steps(run_dir, keys), *_of_layers(run_dir, kinds)]
        commit = trainer.commits[cell.run_name]
        seen += [Seen(_title(cell), recipes[_title(cell)], *numbers, commit) for numbers in found]
        _write(table, seen)
        forget(run_dir)
        print(f"watched: {_title(cell)}  {outcome.seconds:.0f} s", flush=True)
    shown = {entry.key.partition("/")[0] for entry in seen}
    for name in [name for name in (*keys, *kinds) if seen and name not in shown]:
        print(f"warning: no watched training has the number '{name}'")


def draw_all(study: Study, folder: Path) -> list[str]:
    """Draw what the watched trainings of a study show. Returns the names of the pictures."""
    recipes = set(_recipes(study).values())
    seen = [entry for entry in read_seen(folder / "watched.csv") if entry.recipe in recipes]
    if not seen:
        return []
    draw_watched(study, seen, folder / "watched.png")
    kinds = [kind for kind in study.watch.get("layers", ()) if any(e.key.startswith(f"{kind}/") for e in seen)]
    for kind in kinds:
        draw_layers(kind, seen, folder / f"layers_{kind}.png")
    return ["watched.png", *(f"layers_{kind}.png" for kind in kinds)]


def _recipes(study: Study) -> dict[str, str]:
    """The recipes of the cells of the first seed, by title, without the instruments."""
    return {_title(cell): cell.digest for cell in study.cells() if cell.seed == study.seeds[0]}


def read_seen(table: Path) -> list[Seen]:
    """Read ``watched.csv``; nothing if it is not there."""
    if not table.is_file():
        return []
    rows = read_rows(table, [field.name for field in fields(Seen)], {"step": int, "value": float})
    return [Seen(r["training"], r["recipe"], int(r["step"]), r["key"], float(r["value"]), r["commit"]) for r in rows]


def draw_watched(study: Study, seen: Sequence[Seen], path: Path) -> None:
    """Draw a panel for each key over the steps, and in it a line for each training."""
    keys = [key for key in study.watch["keys"] if any(entry.key == key for entry in seen)]
    trainings = _trainings(seen)
    figure, panels = plt.subplots(
        len(keys), 1, figsize=(8, 0.8 + 1.9 * len(keys)), sharex=True, squeeze=False, constrained_layout=True
    )
    for panel, key in zip(panels[:, 0], keys, strict=True):
        for number, training in enumerate(trainings):
            points = [(entry.step, entry.value) for entry in seen if (entry.training, entry.key) == (training, key)]
            if points:
                panel.plot(*zip(*points, strict=True), **look(number), linewidth=1.4, label=training)
        values = [entry.value for entry in seen if entry.key == key]
        if min(values) > 0 and max(values) > LOG_FROM * min(values):
            panel.set_yscale("log")
            plain_numbers(panel.yaxis, values)
        panel.set_ylabel(WORDS.get(key, key.replace("_", " ")))
    panels[-1, 0].set_xlabel("step")
    handles = [plt.Line2D([], [], **look(number), label=training) for number, training in enumerate(trainings)]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    save(figure, path)


def draw_layers(kind: str, seen: Sequence[Seen], path: Path) -> None:
    """Draw the last numbers of all layers over the depth, a line for each training."""
    figure, panel = plt.subplots(figsize=(8, 3.6), constrained_layout=True)
    for training in _trainings(seen):
        values = [e.value for e in seen if e.training == training and e.key.startswith(f"{kind}/")]
        panel.plot(range(1, len(values) + 1), values, marker="o", markersize=3, label=training)
    panel.set(xlabel="block, from the input to the output", ylabel=WORDS.get(kind, kind))
    panel.locator_params(axis="x", integer=True)
    figure.legend(loc="outside lower center", ncols=2)
    save(figure, path)


def _trainings(seen: Sequence[Seen]) -> list[str]:
    return list(dict.fromkeys(entry.training for entry in seen))


def _over_steps(run_dir: Path, keys: Sequence[str]) -> Iterator[tuple[int, str, float]]:
    """Step, key and value of the numbers that a training wrote during its steps."""
    files = [path for path in (run_dir / "metrics.jsonl", run_dir / smoothness.FILE) if path.is_file()]
    for line in (json.loads(line) for path in files for line in path.read_text(encoding="utf-8").splitlines()):
        if line.get("split") != "val":
            yield from ((line["step"], key, line[key]) for key in keys if isinstance(line.get(key), int | float))


def _of_layers(run_dir: Path, kinds: Sequence[str]) -> Iterator[tuple[int, str, float]]:
    """Step, key and value of each layer's number in the last reading of a training."""
    for reading in RunDirectory(run_dir).read_stability()[-1:]:
        for key, value in of_each_layer(reading["layers"]).items():
            if key.partition("/")[0] in kinds and value is not None:
                yield reading["step"], key, value


def _title(cell: Cell) -> str:
    return ", ".join(cell.place.values())


def _write(table: Path, seen: Sequence[Seen]) -> None:
    table.parent.mkdir(parents=True, exist_ok=True)
    rows = ({**asdict(entry), "value": f"{entry.value:.6g}"} for entry in seen)
    write_rows(table, [field.name for field in fields(Seen)], rows)
