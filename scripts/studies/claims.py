"""The claims of a study, and the rules that judge them. A study file states both before its first run."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from engine.errors import UserError
from scripts.studies.results import Row, numbers

CONFIRMED, PARTLY, NOT_CONFIRMED, OPEN = "confirmed", "partly", "not confirmed", "not yet run"
RESAMPLES = 10_000
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


def judge(claim: dict[str, Any], rows: Sequence[Row], chance: float = 0.0) -> Verdict:
    """Judge a claim by its rule.

    Args:
        claim: ``says`` and ``rule`` of the study file. The rule has a ``kind`` and its values:

            - ``difference``: the mean top-1 where the labels are ``of``, less that where they are ``minus``, is at
              least ``least`` points;
            - ``rescue``: at one of the learning rates (axis ``over``), all seeds of ``fails`` crash, while the mean of
              each of ``hold`` is within ``points`` of the best cell of the study.
        rows: the rows of the study.
        chance: top-1 that counts for a run without a last validation.

    Raises:
        UserError: if the rule has another kind.
    """
    rule = claim["rule"]
    if rule["kind"] == "difference":
        return _difference(claim["says"], rule, rows, chance)
    if rule["kind"] == "rescue":
        return _rescue(claim["says"], rule, rows)
    raise UserError(f"a rule of the kind '{rule['kind']}' is unknown: choose difference or rescue")


def _difference(says: str, rule: dict[str, Any], rows: Sequence[Row], chance: float) -> Verdict:
    words = (
        f"the whole 95 % interval of the mean difference is at least {rule['least']} points; partly: a part of it is"
    )
    pairs = _by_seed(rows, rule["of"], chance), _by_seed(rows, rule["minus"], chance)
    seeds = sorted(pairs[0].keys() & pairs[1].keys())
    if len(seeds) < 2:
        return Verdict(says, words, OPEN, f"{len(seeds)} seeds of both are there")
    values = [pairs[0][seed] - pairs[1][seed] for seed in seeds]
    low, high = interval(values)
    least = rule["least"]
    verdict = CONFIRMED if low >= least else NOT_CONFIRMED if high < least else PARTLY
    return Verdict(says, words, verdict, f"{fmean(values):+.2f} points, {low:+.2f} to {high:+.2f} ({len(seeds)} seeds)")


def _by_seed(rows: Sequence[Row], place: dict[str, Any], chance: float) -> dict[str, float]:
    labels = {axis: str(label) for axis, label in place.items()}
    chosen = [row for row in rows if all(row[axis] == label for axis, label in labels.items())]
    return {row["seed"]: float(row["top1"] or chance) for row in chosen}


def _rescue(says: str, rule: dict[str, Any], rows: Sequence[Row]) -> Verdict:
    over, axis = rule["over"], rule["axis"]
    names = ", ".join(rule["hold"])
    words = (
        f"at some {over} every seed of {rule['fails']} crashes, while the mean of each of {names} is within "
        f"{rule['points']} points of the best cell's mean"
    )
    labels = list(dict.fromkeys(row[over] for row in rows))
    places = dict.fromkeys((row[axis], row[over]) for row in rows)
    means = {place: _mean(rows, {axis: place[0], over: place[1]}) for place in places}
    best = max((mean for mean in means.values() if mean is not None), default=None)
    if best is None or not all(any(row[axis] == name for row in rows) for name in (rule["fails"], *rule["hold"])):
        return Verdict(says, words, OPEN, "rows are missing")
    failing = [label for label in labels if _all_crash(rows, {axis: rule["fails"], over: label})]
    held = {label: [means.get((name, label)) for name in rule["hold"]] for label in failing}
    found = [
        label for label, values in held.items() if all(v is not None and v >= best - rule["points"] for v in values)
    ]
    told = "; ".join(
        f"{label}: "
        + ", ".join("–" if v is None else f"{name} {v:.2f}" for name, v in zip(rule["hold"], values, strict=True))
        for label, values in held.items()
    )
    evidence = f"the best cell has {best:.2f} %; where {rule['fails']} always crashes: {told or 'nowhere'}"
    return Verdict(says, words, CONFIRMED if found else NOT_CONFIRMED if not failing else PARTLY, evidence)


def _mean(rows: Sequence[Row], where: dict[str, str]) -> float | None:
    values = numbers(list(rows), "top1", **where)
    return fmean(values) if values else None


def _all_crash(rows: Sequence[Row], where: dict[str, str]) -> bool:
    crashed = [row["crashed"] for row in rows if all(row[axis] == label for axis, label in where.items())]
    return bool(crashed) and all(value == "True" for value in crashed)
