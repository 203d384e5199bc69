"""The table of a study's results: one row a cell, in ``results.csv``."""

import csv
import fcntl
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from engine.errors import UserError
from scripts.studies.study import Cell, Study, study_names


@dataclass(frozen=True)
class Outcome:
    """What came of a cell.

    Attributes:
        top1: accuracy of the last validation in percent; None if the run ended before it.
        best_top1: the highest accuracy.
        lowest_loss: the lowest mean training loss of an interval.
        last_loss: that of the last interval.
        crashed: whether the loss was not finite, or the accuracy stayed below the study's ``crash_below``.
        diverged_at: the step whose loss or gradient was not finite; None if all were finite.
        seconds: time of the training since its last start. Other trainings may have run beside it.
    """

    top1: float | None
    best_top1: float | None
    lowest_loss: float
    last_loss: float
    crashed: bool
    diverged_at: int | None
    seconds: float


@dataclass(frozen=True)
class Origin:
    """Where and with what a cell was trained. On a CPU, the same origin (without ``+``) gives the same bits.

    Attributes:
        commit: the project's commit at its last start; ``+`` at its end: with changes that are not committed.
        cpu: type of the CPU, or name of the GPU.
        threads: threads of the process.
        torch: torch's version.
        data: SHA-256 of the training images' decoded pixels in the order of the index, its first 12 digits.
    """

    commit: str
    cpu: str
    threads: int
    torch: str
    data: str


Row = dict[str, str]
# Columns with numbers. A place is empty if the training has no such number.
NUMBERS = dict.fromkeys(("top1", "best_top1", "lowest_loss", "last_loss", "seconds"), float)


def top1(row: Row) -> float:
    """The accuracy of a row's last validation in percent; 0 if the loss was not finite, because no model is left."""
    return float(row["top1"] or 0.0)


def row_of(cell: Cell, outcome: Outcome, origin: Origin) -> Row:
    """The row of a cell, as text."""
    values = {**cell.place, "seed": cell.seed, **asdict(outcome), **asdict(origin), "options": cell.recipe}
    return {key: "" if value is None else str(value) for key, value in values.items()}


class Results:
    """The rows in a study's ``results.csv``. Several processes may add to it.

    Args:
        path: the file; it need not exist.
        study: gives the columns of its axes.

    Raises:
        UserError: if an axis has the name of another column.
    """

    def __init__(self, path: Path, study: Study):
        self.path, self.study = path, study
        self.columns = [*study.axes, "seed", *(f.name for f in (*fields(Outcome), *fields(Origin))), "options"]
        if twice := [axis for axis in study.axes if self.columns.count(axis) > 1]:
            raise UserError(f"the axis '{twice[0]}' of {study.name} has the name of a column of results.csv: rename it")

    def rows(self) -> list[Row]:
        """All rows in the file."""
        return read_rows(self.path, self.columns, NUMBERS, may_lack=True)

    def missing(self, cells: list[Cell]) -> list[Cell]:
        """The cells that have not been trained with their present options."""
        done = {row["options"] for row in self.rows()}
        return [cell for cell in cells if cell.recipe not in done]

    def borrow(self, cells: list[Cell], accepts: Callable[[Row], bool] = lambda row: True) -> int:
        """Add the rows of cells that another study has trained at the same scale. Returns how many.

        Args:
            cells: the cells.
            accepts: whether a row may be taken.
        """
        wanted = {cell.recipe: cell for cell in self.missing(cells)}
        own = [key for key in self.columns if key not in (*self.study.axes, "seed")]
        found = 0
        root = self.path.parents[len(Path(self.study.folder).parts)]  # the folder of all results
        for name in study_names():
            path = root / replace(self.study, name=name).folder / "results.csv"
            for row in read_rows(path, own, NUMBERS, may_lack=True):
                if row["options"] in wanted and accepts(row):
                    cell = wanted.pop(row["options"])
                    self.add({**cell.place, "seed": str(cell.seed)} | {key: row[key] for key in own})
                    found += 1
        return found

    def of_study(self) -> list[Row]:
        """The rows of the study's cells, in their order. Rows of other options stay in the file and are left out."""
        found = {row["options"]: row for row in self.rows()}
        return [found[cell.recipe] | cell.place for cell in self.study.cells() if cell.recipe in found]

    def add(self, row: Row) -> None:
        """Add a row, in place of an earlier one with the same options, and sort all as the study's cells."""
        order = {cell.recipe: n for n, cell in enumerate(self.study.cells())}
        with self._locked():
            kept = [other for other in self.rows() if other["options"] != row["options"]]
            rows = sorted([*kept, row], key=lambda r: order.get(r["options"], len(order)))
            write_rows(self.path, self.columns, rows)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Over NFS, a file that is open for writing is locked for all machines. A folder is locked for this one only.
        with self.path.with_name(".lock").open("w", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a table. It appears by renaming, so a reader never sees half of it, and a kill loses no earlier rows."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    part.replace(path)


def read_rows(
    path: Path, columns: Sequence[str] = (), numbers: Mapping[str, type] | None = None, may_lack: bool = False
) -> list[Row]:
    """All rows of a table; none if there is no file.

    Args:
        path: the file.
        columns: those that it must have.
        numbers: those of them that hold numbers, with ``int`` or ``float``.
        may_lack: whether the place of a number may be empty.

    Raises:
        UserError: if it lacks one of the columns, a row is not complete, or a number is missing.
    """
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        try:
            reader = csv.DictReader(file)
            rows = list(reader)
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read ({error}): restore it, or delete it") from error
    if lacking := [column for column in columns if rows and column not in (reader.fieldnames or ())]:
        raise UserError(f"{path} has no column '{lacking[0]}': restore it, or delete it")
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise UserError(f"{path}, line {number}, is not a whole row: delete this line, or restore the file")
        for column, kind in (numbers or {}).items():
            if row[column] or not may_lack:
                _refuse_no_number(kind, column, row[column], f"{path}, line {number}")
    return rows


def _refuse_no_number(kind: type, column: str, text: str, where: str) -> None:
    try:
        kind(text)
    except ValueError as error:
        what = "whole number" if kind is int else "number"
        said = f"{column} is '{text}', no {what}"
        raise UserError(f"{where}: {said}: delete this line, or restore the file") from error
