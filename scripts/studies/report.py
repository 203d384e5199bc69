"""Write a study's report: what it claims, what was found, and the whole table."""

import os
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, pstdev

from scripts.common.tables import head, row
from scripts.studies.claims import Verdict
from scripts.studies.results import Results, Row, top1
from scripts.studies.study import PROJECT, Study
from scripts.studies.width import POINTS, widths


def write_report(
    folder: Path, study: Study, results: Results, verdicts: Sequence[Verdict], pictures: Sequence[str], older: int
) -> None:
    """Write ``README.md`` into the folder of the study's results.

    Args:
        folder: where ``results.csv`` and the pictures are.
        study: the study.
        results: its rows.
        verdicts: on each claim.
        pictures: names of picture files in the folder.
        older: rows that were trained before the rules of the claims had their present form.
    """
    rows, cells = results.of_study(), study.cells()
    file = os.path.relpath(PROJECT / f"conf/study/{study.name}.yaml", folder)
    parts = [
        f"# {study.title}",
        f"`{study.command}` wrote this page. The claims are those of {study.paper}. The study's file, "
        f"[conf/study/{study.name}.yaml]({file}), states them and our rules that judge them.",
        _claims(verdicts),
        *(f"![{Path(name).stem.replace('_', ' ')}]({name})" for name in pictures),
        _machine(rows),
        f"**{len(rows)} of {len(cells)} trainings** have been run, at the scale `{study.scale}`. Nothing is said about "
        "larger models or other data."
        + (f" **{older} of them are older than the present rules of the claims.**" if older else ""),
        _grid(study, rows),
    ]
    (folder / "README.md").write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")


def _claims(verdicts: Sequence[Verdict]) -> str:
    rows = [row(v.claim, f"**{v.verdict}**", v.evidence, v.rule) for v in verdicts]
    note = (
        "Evidence is the mean over the seeds and its bootstrap interval, which is too narrow where there are few seeds."
    )
    return "\n".join([head("claim", "verdict", "evidence", "rule"), *rows, "", note])


def _machine(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    hours = sum(float(row["seconds"] or 0.0) for row in rows) / 3600
    machines = sorted({f"{row['cpu']}, {row['threads']} thread(s) each, torch {row['torch']}" for row in rows})
    data = sorted({row["data"] for row in rows if row["data"]})
    pixels = f" SHA-256 of the training images' pixels: {', '.join(data)}." if data else ""
    return f"Machine: {'; '.join(machines)}. The trainings took {hours:.1f} hours, added up.{pixels}"


def _grid(study: Study, rows: Sequence[Row]) -> str:
    """Mean top-1 at each place of the grid. The last axis goes across."""
    down, across = study.down, study.across
    labels, wide = list(study.axes[across]), widths(study, rows)
    lines = [head(*down, *(f"{across} {label}" for label in labels), *(["octaves"] if wide else []))]
    for place in study.lines():
        chosen = [each for each in rows if tuple(each[axis] for axis in down) == place]
        shown = [_shown([each for each in chosen if each[across] == label]) for label in labels]
        lines.append(row(*place, *shown, *([wide.get(place, "")] if wide else [])))
    note = (
        "Top-1 in percent: mean ± standard deviation (number of seeds; crashed ones). A run whose loss was not finite "
        "counts as 0. An empty place was not run."
    )
    if wide:
        note += (
            f" Octaves: how many times the learning rate can double while the mean stays within {POINTS:g} points of "
            "the best one. Between two rates the mean is interpolated. ≥: the range reaches the end of the grid."
        )
    return "\n".join([note, "", *lines])


def _shown(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    values = [top1(row) for row in rows]
    crashed = sum(row["crashed"] == "True" for row in rows)
    spread = f" ± {pstdev(values):.2f}" if len(values) > 1 else ""
    return f"{fmean(values):.2f}{spread} ({len(rows)}{f'; {crashed} crashed' if crashed else ''})"
