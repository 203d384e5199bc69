"""Write the results of an evaluation: a JSON file, a Markdown table, and lines on the console."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data import SETS
from engine.errors import UserError
from engine.evaluation.scoring import Scores
from engine.json_text import to_json
from engine.options.config import EvalConfig

log = logging.getLogger(__name__)


def refuse_unwritable(cfg: EvalConfig) -> None:
    """Check before the evaluation that its files can be written, and that none of them takes the place of another.

    Raises:
        UserError: if one of them cannot.
    """
    if not Path(cfg.output).name:
        raise UserError(f"output={cfg.output} is not a file: set output to a file, such as eval.json")
    if Path(cfg.output) == _table_path(cfg):
        raise UserError(f"output={cfg.output} is a JSON file: choose another extension than .md")
    written = [("output", cfg.output, Path(cfg.output)), ("output", cfg.output, _table_path(cfg))]
    if cfg.predictions is not None:
        sets = cfg.sets.folders() or [cfg.data.name]
        written += [("predictions", cfg.predictions, predictions_path(cfg, name)) for name in sets]
    taken = {Path(cfg.checkpoint).resolve(): "the checkpoint"} if cfg.checkpoint is not None else {}
    for option, typed, path in written:
        _refuse_path(option, typed, path)
        if what := taken.get(path.resolve()):
            raise UserError(f"{option}={typed}: {path} is {what}: set {option} to another file")
        taken[path.resolve()] = f"written by {option}={typed}"


def _refuse_path(option: str, typed: str, path: Path) -> None:
    folder = path.resolve().parent
    if path.is_dir() or not folder.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        raise UserError(f"{option}={typed}: {path} cannot be written: set {option} to another file")


def predictions_path(cfg: EvalConfig, name: str) -> Path:
    """Return the file for the predictions on one set. With several sets, the file name contains the set's name."""
    path = Path(str(cfg.predictions))
    return path.with_name(f"{path.stem}.{name}{path.suffix}") if len(cfg.sets.folders()) > 1 else path


def _table_path(cfg: EvalConfig) -> Path:
    return Path(cfg.output).with_suffix(".md")


def write_scores(cfg: EvalConfig, scores: Scores, backend: str) -> None:
    """Write the scores on the images of ``data``, and print them."""
    log.info("%s on %d images of %s (read by %s)", cfg.checkpoint, scores.images, cfg.data.name, backend)
    log.info("top-1 %.2f %%, top-5 %.2f %%, loss %.4f", scores.top1, scores.top5, scores.loss)
    write_json(cfg, {"data": cfg.data.name, "split": cfg.data.split} | scores.as_dict())
    log.info("written to %s", os.path.relpath(cfg.output))


def write_sets(cfg: EvalConfig, scores: dict[str, Scores]) -> None:
    """Write the scores on one or more evaluation sets, and print their table."""
    rows = [_row(name, found) for name, found in scores.items()]
    table = markdown_table(("set", "images", "top-1, %", "top-5, %", "loss"), rows)
    said = f"{cfg.checkpoint}, {cfg.data.crop} pixels, {cfg.amp}"
    log.info("\n%s\n\n%s\n", said, table)
    path = _table_path(cfg)
    _write(path, f"{said}\n\n{table}\n")
    write_json(cfg, {"sets": {name: _known(found) for name, found in scores.items()}})
    log.info("written to %s and %s", os.path.relpath(cfg.output), os.path.relpath(path))


def _known(scores: Scores) -> dict[str, float]:
    """Return the scores without the loss if it is NaN."""
    return {name: value for name, value in scores.as_dict().items() if value == value}


def _row(name: str, scores: Scores) -> tuple[str, ...]:
    whole = SETS[name].images
    images = str(scores.images) if scores.images == whole else f"{scores.images} of {whole}"
    loss = f"{scores.loss:.4f}" if "loss" in _known(scores) else "–"
    return SETS[name].title, images, f"{scores.top1:.2f}", f"{scores.top5:.2f}", loss


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with padded cells. The first column is left-aligned, the others right-aligned."""
    lines = [head, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    cells = [
        [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        for line in (head, rule, *rows)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def write_json(cfg: EvalConfig, content: dict[str, Any]) -> None:
    """Write the JSON file with the checkpoint's path and ``content``."""
    checkpoint = str(cfg.checkpoint) if cfg.checkpoint is not None else None
    _write(Path(cfg.output), to_json({"checkpoint": checkpoint} | content, indent=1) + "\n")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:  # such as a full disk
        raise UserError(f"{path} could not be written ({error.strerror}): set output to another file") from error
