"""What the theory of Pre-LN and Post-LN predicts at initialisation, and the verdicts (Xiong et al., ICML 2020)."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from engine.errors import UserError
from scripts.studies.at_init_measuring import Measured, measure
from scripts.studies.at_init_picture import draw_at_init
from scripts.studies.claims import CONFIRMED, NOT_CONFIRMED, PARTLY, Verdict, interval
from scripts.studies.results import read_rows, write_rows
from scripts.studies.study import Study

COLUMNS = [field.name for field in fields(Measured)]
NUMBERS = {"depth": int, "seed": int, "block": int, "gradient": float, "size": float}


def verdicts_at_init(study: Study, folder: Path, measures: bool = False) -> list[Verdict]:
    """Judge the study's claims about initialisation, from ``at_init.csv``; none if that file is missing.

    Args:
        study: the study; without ``init`` there is nothing to judge.
        folder: of the results.
        measures: whether to measure and to write the file first.

    Raises:
        UserError: if the file is damaged, or a rule has another kind.
    """
    path = folder / "at_init.csv"
    if not study.init or not (measures or path.is_file()):
        return []
    if measures:
        found = map(asdict, measure(study.init))
        rows = [{k: f"{v:.6g}" if isinstance(v, float) else v for k, v in each.items()} for each in found]
        folder.mkdir(parents=True, exist_ok=True)
        write_rows(path, COLUMNS, rows)
    measured = _read(path)
    draw_at_init(measured, folder / "at_init.png")
    return [_judge(claim["says"], claim["rule"], measured) for claim in study.init["claims"]]


def _read(path: Path) -> list[Measured]:
    texts = [[row[name] for name in COLUMNS] for row in read_rows(path, COLUMNS, NUMBERS)]
    return [
        Measured(model, position, int(depth), int(seed), int(block), float(gradient), float(size), commit)
        for model, position, depth, seed, block, gradient, size, commit in texts
    ]


def _judge(says: str, rule: dict[str, Any], measured: Sequence[Measured]) -> Verdict:
    chosen = [m for m in measured if (m.model, m.position) == (rule["model"], rule["position"])]
    kind = rule["kind"]
    if kind == "slope over depths":  # the exponent of the power law of the last block's gradient
        last = [m for m in chosen if m.block == m.depth]
        return _judge_values(says, rule, _slopes(last, lambda m: np.log(m.depth)))
    if kind == "slope over blocks":  # in the deepest model, over the distance from its last block
        most = max(m.depth for m in chosen)
        deepest = [m for m in chosen if m.depth == most]
        return _judge_values(says, rule, _slopes(deepest, lambda m: m.depth - m.block))
    if kind == "size":
        return _judge_values(says, rule, [fmean(m.size for m in own) for own in _by_seed(chosen)])
    if kind == "size between":
        return _judge_sizes(says, rule, chosen)
    raise UserError(f"a rule of the kind '{kind}' is unknown at initialisation")


def _by_seed(measured: Sequence[Measured]) -> list[list[Measured]]:
    return [[m for m in measured if m.seed == seed] for seed in sorted({m.seed for m in measured})]


def _slopes(measured: Sequence[Measured], over: Callable[[Measured], float]) -> list[float]:
    """For each seed the slope of the logarithm of the gradient over another number."""
    return [
        float(np.polyfit([over(m) for m in own], [np.log(m.gradient) for m in own], 1)[0]) for own in _by_seed(measured)
    ]


def _judge_values(says: str, rule: dict[str, Any], values: Sequence[float]) -> Verdict:
    """Compare the mean over the seeds, and its interval, with the prediction."""
    mean, (low, high) = fmean(values), interval(values)
    told = f"{mean:.3f}, {low:.3f} to {high:.3f} ({len(values)} seeds)"
    if "at_least" in rule:
        bound = rule["at_least"]
        words = f"the whole 95 % interval is at least {bound}"
        return Verdict(says, words, CONFIRMED if low >= bound else NOT_CONFIRMED if high < bound else PARTLY, told)
    predicted = rule["predicts"]
    if "within" in rule:
        words = f"the whole 95 % interval is within {rule['within']} of {predicted}; partly: only a part is"
        inside = predicted - rule["within"] <= low and high <= predicted + rule["within"]
        touches = low <= predicted + rule["within"] and predicted - rule["within"] <= high
    else:
        words = f"{predicted} is in the 95 % interval, and {rule['rival']} is not; partly: both are"
        touches = low <= predicted <= high
        inside = touches and not low <= rule["rival"] <= high
    return Verdict(says, words, CONFIRMED if inside else PARTLY if touches else NOT_CONFIRMED, told)


def _judge_sizes(says: str, rule: dict[str, Any], measured: Sequence[Measured]) -> Verdict:
    low, high = rule["below"], rule["above"]
    by_block: dict[int, list[float]] = defaultdict(list)
    for m in measured:
        by_block[m.block].append(m.size)
    means = {block: fmean(values) for block, values in by_block.items()}
    inside = [1 + low * block <= size <= 1 + high * block for block, size in means.items()]
    words = "the mean over seeds and depths lies between the bounds for every block; partly: for most blocks"
    told = f"{sum(inside)} of {len(inside)} blocks; the last one has {means[max(means)]:.2f}"
    verdict = CONFIRMED if all(inside) else PARTLY if sum(inside) > len(inside) / 2 else NOT_CONFIRMED
    return Verdict(says, words, verdict, told)
