"""The claims of a study, and the rules that judge them. A study file states both before its first run."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean
from typing import Any

from engine.errors import UserError
from scripts.studies.results import Row, top1

CONFIRMED, PARTLY, NOT_CONFIRMED, OPEN = "confirmed", "partly", "not confirmed", "not yet run"
RESAMPLES = 10_000
FEWEST_SEEDS = 2  # of a cell that decides
LEVEL = 0.95


@dataclass(frozen=True)
class Verdict:
    """What the results say about a claim.

    Attributes:
        claim: the claim, in words.
        rule: the rule, in words.
        verdict: confirmed, partly, not confirmed, or not yet run.
        evidence: the numbers behind it.
    """

    claim: str
    rule: str
    verdict: str
    evidence: str


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The bootstrap interval of the mean, by percentiles (Efron and Tibshirani, 1993, chapter 13).

    Args:
        values: one number a seed, at least two. From few seeds the interval is too narrow.
    """
    draw = random.Random(0)
    means = sorted(fmean(draw.choices(values, k=len(values))) for _ in range(RESAMPLES))
    outside = (1 - LEVEL) / 2
    return means[int(outside * RESAMPLES)], means[int((1 - outside) * RESAMPLES) - 1]


def judge(claim: dict[str, Any], rows: Sequence[Row]) -> Verdict:
    """Judge a claim by its rule.

    Args:
        claim: ``says`` and ``rule`` of the study file. The rule has a ``kind`` and its values:

            - ``difference``: the mean of a ``column`` (``top1`` unless it names another) where the labels are
              ``of``, less that where they are ``minus``, is at least ``least``. A place may leave axes out: then the
              mean is over all their labels;
            - ``rescue``: at one of the learning rates (axis ``over``), all seeds of ``fails`` crash, while the mean of
              each of ``hold`` is within ``points`` of two numbers: its own mean at its best rate, and the mean of
              ``fails`` at the best rate of ``fails``.
        rows: the rows of the study. A run whose loss was not finite counts as 0 %.

    Raises:
        UserError: if the rule has another kind.
    """
    rule = claim["rule"]
    if rule["kind"] == "difference":
        return _difference(claim["says"], rule, rows)
    if rule["kind"] == "rescue":
        return _rescue(claim["says"], rule, rows)
    raise UserError(f"a rule of the kind '{rule['kind']}' is unknown: choose difference or rescue")


def _difference(says: str, rule: dict[str, Any], rows: Sequence[Row]) -> Verdict:
    column = rule.get("column", "top1")
    unit = " points" if column == "top1" else ""
    words = (
        f"the whole 95 % interval of the mean difference is at least {rule['least']}{unit}; partly: only a part of the "
        "interval is"
    )
    of, minus = _by_seed(rows, rule["of"], column), _by_seed(rows, rule["minus"], column)
    # A seed counts when all its trainings are there: the labels of the other axes may differ in difficulty.
    complete = [max(map(len, found.values()), default=0) for found in (of, minus)]
    seeds = sorted(s for s in of.keys() & minus.keys() if [len(of[s]), len(minus[s])] == complete)
    if len(seeds) < FEWEST_SEEDS:
        return Verdict(says, words, OPEN, f"{len(seeds)} seeds of both are there, and {FEWEST_SEEDS} are needed")
    values = [fmean(of[seed]) - fmean(minus[seed]) for seed in seeds]
    low, high = interval(values)
    least = rule["least"]
    verdict = CONFIRMED if low >= least else NOT_CONFIRMED if high < least else PARTLY
    return Verdict(says, words, verdict, f"{fmean(values):+.2f}{unit}, {low:+.2f} to {high:+.2f} ({len(seeds)} seeds)")


def _by_seed(rows: Sequence[Row], place: dict[str, Any], column: str = "top1") -> dict[str, list[float]]:
    """The values of each seed at a place: one for each label of the axes that the place does not name."""
    labels = {axis: str(label) for axis, label in place.items()}
    chosen = [row for row in rows if all(row[axis] == label for axis, label in labels.items())]
    found: dict[str, list[float]] = defaultdict(list)
    for row in chosen:
        found[row["seed"]].append(top1(row) if column == "top1" else float(row[column] or 0.0))
    return found


def _rescue(says: str, rule: dict[str, Any], rows: Sequence[Row]) -> Verdict:
    over, axis, fails, points = rule["over"], rule["axis"], rule["fails"], rule["points"]
    words = (
        f"at some {over} every seed of {fails} crashes, while the mean of each of {', '.join(rule['hold'])} is within "
        f"{points} points of its own best mean and of the best of {fails}"
    )
    means = {name: _means(rows, axis, name, over) for name in (fails, *rule["hold"])}
    if lacking := [name for name, values in means.items() if not values]:
        return Verdict(says, words, OPEN, f"no rows of {', '.join(lacking)}")
    best = {name: max(values.values()) for name, values in means.items()}
    least = {name: max(best[name], best[fails]) - points for name in rule["hold"]}
    crashing = [label for label in means[fails] if _all_crash(rows, {axis: fails, over: label})]
    rescued = [label for label in crashing if all(means[name].get(label, 0.0) >= least[name] for name in least)]

    def has_seeds(label: str) -> bool:
        places = ({axis: name, over: label} for name in means)
        return all(len(_by_seed(rows, place)) >= FEWEST_SEEDS for place in places)

    if not crashing:
        verdict = NOT_CONFIRMED
    elif not rescued:
        verdict = PARTLY
    else:
        verdict = CONFIRMED if any(map(has_seeds, rescued)) else OPEN
    bests = ", ".join(f"{name} {value:.2f}" for name, value in best.items())
    told = "; ".join(
        f"{label}: " + ", ".join(f"{name} {means[name][label]:.2f}" for name in least if label in means[name])
        for label in crashing
    )
    few = "too few seeds; " if verdict == OPEN else ""
    evidence = f"{few}best means: {bests}; where every seed of {fails} crashes: {told or 'nowhere'}"
    return Verdict(says, words, verdict, evidence)


def _means(rows: Sequence[Row], axis: str, name: str, over: str) -> dict[str, float]:
    """The mean top-1 of a method at each label of another axis."""
    labels = dict.fromkeys(row[over] for row in rows if row[axis] == name)
    return {label: fmean(chain(*_by_seed(rows, {axis: name, over: label}).values())) for label in labels}


def _all_crash(rows: Sequence[Row], where: dict[str, str]) -> bool:
    crashed = [row["crashed"] for row in rows if all(row[axis] == label for axis, label in where.items())]
    return bool(crashed) and all(value == "True" for value in crashed)
