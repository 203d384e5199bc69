"""Reads a study's file, and finds its mistakes before the first training."""

from pathlib import Path
from typing import Any

import yaml

from engine.errors import UserError
from engine.similar import nearest

NEEDED = {"title": str, "paper": str, "seeds": list, "axes": dict}
MAY = {"base": list, "scales": dict, "claims": list, "init": dict, "watch": dict}
NUMBER = (int, float)
KINDS: dict[Any, dict[str, Any]] = {  # what a rule of each kind needs
    "difference": {"of": dict, "minus": dict, "least": NUMBER},
    "rescue": {"axis": str, "over": str, "fails": object, "hold": list, "points": NUMBER},
}
COLUMNS = ("top1", "best_top1", "lowest_loss", "last_loss")


def load(path: Path) -> dict[str, Any]:
    """Read a study's file, and the scales of all studies in the folder ``scales`` beside it.

    Raises:
        UserError: if it is not YAML, lacks a part, or names a label or a list of options that it does not have.
    """
    written = _read(path)
    try:
        _keys(written, "the study", NEEDED, MAY)
        common = {file.stem: _read(file) for file in sorted((path.parent / "scales").glob("*.yaml"))}
        written["scales"] = common | written.get("scales", {})
        _check(written)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return written


def _read(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{where} is not YAML: {getattr(error, 'problem', error)}") from error


def _check(written: dict[str, Any]) -> None:
    for name, scale in written["scales"].items():
        _keys(scale, f"the scale {name}", {"base": list, "crash_below": NUMBER}, dict.fromkeys(scale, object))
    for axis, labels in written["axes"].items():
        _keys(labels, f"the axis {axis}", {}, dict.fromkeys(labels, list))
    if not written["seeds"] or any(type(seed) is not int or seed < 0 for seed in written["seeds"]):
        raise UserError(f"'seeds' must be whole numbers, such as [0, 1, 2], not {written['seeds']}")
    _check_names(written)
    for claim in written.get("claims", ()):
        _check_claim(claim, written["axes"])
    if watch := written.get("watch"):
        _check_watch(watch, written["axes"])


def _check_names(written: dict[str, Any]) -> None:
    """Each ``$name`` is a list in every scale."""
    for name, scale in written["scales"].items():
        lists = [
            scale["base"],
            written.get("base", []),
            *(options for labels in written["axes"].values() for options in labels.values()),
        ]
        for option in (option for options in lists for option in options):
            if str(option).startswith("$") and not isinstance(scale.get(option[1:]), list):
                known = [key for key in scale if key not in ("base", "crash_below")]
                raise UserError(f"the scale {name} has no list '{option[1:]}': {nearest(option[1:], known)}")


def _check_claim(claim: Any, axes: dict[str, Any]) -> None:
    _keys(claim, "a claim", {"says": str, "rule": dict}, {})
    rule, of = claim["rule"], f"the claim '{claim['says']}'"
    kind = rule.get("kind")
    if kind not in KINDS:
        raise UserError(f"{of} has a rule of the kind '{kind}': choose {' or '.join(KINDS)}")
    _keys(rule, f"the rule of {of}", KINDS[kind], {"kind": str, "column": str})
    if rule.get("column", "top1") not in COLUMNS:
        raise UserError(f"{of} has the column '{rule['column']}': choose {', '.join(COLUMNS)}")
    for place in (rule.get("of", {}), rule.get("minus", {})):
        for axis, label in place.items():
            _label(axes, axis, label, of)
    if kind == "rescue":
        for label in (rule["fails"], *rule["hold"]):
            _label(axes, rule["axis"], label, of)
        _axis(axes, rule["over"], of)


def _check_watch(watch: Any, axes: dict[str, Any]) -> None:
    _keys(watch, "'watch'", {"keys": list, "cells": list}, {"layers": list, "options": list})
    for labels in watch["cells"]:
        if not isinstance(labels, list) or len(labels) != len(axes):
            raise UserError(f"the watched cell {labels} needs a label for each of {', '.join(axes)}")
        for axis, label in zip(axes, labels, strict=True):
            _label(axes, axis, label, f"the watched cell {labels}")


def _axis(axes: dict[str, Any], axis: str, of: str) -> list[str]:
    """The labels of an axis, which must be one of the study's."""
    if axis not in axes:
        raise UserError(f"{of} names the axis '{axis}': {nearest(str(axis), list(axes))}")
    return [str(label) for label in axes[axis]]


def _label(axes: dict[str, Any], axis: str, label: Any, of: str) -> None:
    labels = _axis(axes, axis, of)
    if str(label) not in labels:
        raise UserError(f"{of} names {axis}={label}: choose {', '.join(labels)}")


def _keys(found: Any, of: str, needed: dict[str, Any], may: dict[str, Any]) -> None:
    """Check the names and types in a mapping."""
    if not isinstance(found, dict):
        raise UserError(f"{of} must be a mapping of names to values, not {found!r}")
    for key in found:
        if key not in (known := [*needed, *may]):
            raise UserError(f"{of} has '{key}': {nearest(str(key), known)}")
    for key, kind in (needed | may).items():
        if key not in found and key in needed:
            raise UserError(f"{of} needs '{key}'")
        if key in found and not isinstance(found[key], kind):
            what = {list: "a list in […]", dict: "a mapping of names to values", str: "text"}.get(kind, "a number")
            raise UserError(f"'{key}' of {of} must be {what}, not {found[key]!r}")
