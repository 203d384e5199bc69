"""What the theory of Pre-LN and Post-LN predicts at initialisation, measured (Xiong et al., ICML 2020, section 3.3)."""

import csv
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

import models  # noqa: F401  # registers them
from engine.errors import UserError
from scripts.common.pictures import plt, save
from scripts.studies.claims import CONFIRMED, NOT_CONFIRMED, PARTLY, Verdict, interval
from scripts.studies.origin import commit_now
from scripts.studies.results import write_rows
from scripts.studies.study import Study

CLASSES = 10
POSITIONS = ("post", "pre")


@dataclass(frozen=True)
class Measured:
    """One block of one model.

    Attributes:
        model: which of the study's models.
        position: ``pre`` or ``post``.
        depth: blocks of the model.
        seed: of its weights and images.
        block: number of the block, from 1 at the input.
        gradient: Frobenius norm of the loss's mean gradient for the second weight of the block's MLP.
        size: mean of ``‖x‖² / d``: before the block's last norm in Post-LN, after the block in Pre-LN.
        commit: the project's commit, see :class:`scripts.studies.results.Origin`.
    """

    model: str
    position: str
    depth: int
    seed: int
    block: int
    gradient: float
    size: float
    commit: str


def verdicts_at_init(study: Study, folder: Path, measure: bool = False) -> list[Verdict]:
    """Judge the study's claims about initialisation, from ``at_init.csv``; none if that file is missing.

    Args:
        study: the study; without ``init`` there is nothing to judge.
        folder: of the results.
        measure: whether to measure and to write the file first.
    """
    path = folder / "at_init.csv"
    if not study.init or not (measure or path.is_file()):
        return []
    if measure:
        found = map(asdict, _measure(study.init))
        rows = [{k: f"{v:.6g}" if isinstance(v, float) else v for k, v in each.items()} for each in found]
        folder.mkdir(parents=True, exist_ok=True)
        write_rows(path, [field.name for field in fields(Measured)], rows)
    measured = _read(path)
    _draw(measured, folder / "at_init.png")
    return [_judge(claim["says"], claim["rule"], measured) for claim in study.init["claims"]]


def _read(path: Path) -> list[Measured]:
    kinds = {field.name: field.type for field in fields(Measured)}
    with path.open(encoding="utf-8", newline="") as file:
        return [Measured(**{k: kinds[k](v) for k, v in row.items()}) for row in csv.DictReader(file)]  # type: ignore[operator]


# --- measuring ------------------------------------------------------------------------------------------------------


def _measure(init: dict[str, Any]) -> Iterator[Measured]:
    wanted = [
        (name, position, depth, seed)
        for name in init["models"]
        for position in POSITIONS
        for depth in init["depths"]
        for seed in range(init["first_seed"], init["first_seed"] + init["seeds"])
    ]
    for name, position, depth, seed in tqdm(wanted, desc="at initialisation", unit="model", disable=None, leave=False):
        torch.manual_seed(seed)
        model = timm.create_model(
            f"vit_{position}ln_small", num_classes=CLASSES, depth=depth, **init["models"][name]
        ).train()
        shared = torch.Generator().manual_seed(seed)
        gradients, sizes = _gradients_and_sizes(model, position, init["batches"], init["images"], shared)
        for block, (gradient, size) in enumerate(zip(gradients, sizes, strict=True), 1):
            yield Measured(name, position, depth, seed, block, gradient, size, commit_now())


def _gradients_and_sizes(
    model: Any, position: str, batches: int, images: int, shared: torch.Generator
) -> tuple[list[float], list[float]]:
    """The values of each block, over batches of random images whose pixels have mean 0 and variance 1.

    The classifier, the images and their labels come from ``shared``. So they are the same at every depth, and their
    chance does not count as an effect of the depth.
    """
    with torch.no_grad():
        classifier = model.head.weight
        classifier.copy_(torch.randn(classifier.shape, generator=shared) * classifier.std())
    sizes: dict[int, list[float]] = defaultdict(list)

    def note(block: int, x: torch.Tensor) -> None:
        sizes[block].append(x.detach().square().mean().item())

    for number, block in enumerate(model.blocks):
        if position == "post":
            block.norm2.register_forward_pre_hook(lambda _, x, at=number: note(at, x[0]))
        else:
            block.register_forward_hook(lambda _, __, y, at=number: note(at, y))
    weights: list[nn.Parameter] = [block.mlp.fc2.weight for block in model.blocks]
    total = [torch.zeros_like(weight) for weight in weights]
    for _ in range(batches):
        x = torch.randn(images, 3, *model.patch_embed.img_size, generator=shared)
        loss = F.cross_entropy(model(x), torch.randint(CLASSES, (images,), generator=shared))
        for sum_, gradient in zip(total, torch.autograd.grad(loss, weights), strict=True):
            sum_ += gradient / batches
    return [gradient.norm().item() for gradient in total], [fmean(sizes[n]) for n in range(len(weights))]


# --- judging --------------------------------------------------------------------------------------------------------


def _judge(says: str, rule: dict[str, Any], measured: Sequence[Measured]) -> Verdict:
    chosen = [m for m in measured if (m.model, m.position) == (rule["model"], rule["position"])]
    if rule["kind"] in ("slope over depths", "slope over blocks"):
        values = _over_depths(chosen) if rule["kind"] == "slope over depths" else _over_blocks(chosen)
        return _judge_slope(says, rule, values)
    if rule["kind"] == "size":
        return _judge_slope(says, rule, [fmean(m.size for m in chosen if m.seed == seed) for seed in _seeds(chosen)])
    if rule["kind"] == "size between":
        return _judge_sizes(says, rule, chosen)
    raise UserError(f"a rule of the kind '{rule['kind']}' is unknown at initialisation")


def _seeds(measured: Sequence[Measured]) -> list[int]:
    return sorted({m.seed for m in measured})


def _over_depths(measured: Sequence[Measured]) -> list[float]:
    """For each seed the exponent of the power law of the last block's gradient over the depth."""
    last = [m for m in measured if m.block == m.depth]
    return [
        _slope([np.log(m.depth) for m in last if m.seed == seed], [np.log(m.gradient) for m in last if m.seed == seed])
        for seed in _seeds(last)
    ]


def _over_blocks(measured: Sequence[Measured]) -> list[float]:
    """For each seed the slope of log(gradient) over the distance from the last block, in the deepest model."""
    deepest = max(m.depth for m in measured)
    chosen = [m for m in measured if m.depth == deepest]
    return [
        _slope(
            [deepest - m.block for m in chosen if m.seed == seed],
            [np.log(m.gradient) for m in chosen if m.seed == seed],
        )
        for seed in _seeds(chosen)
    ]


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    return float(np.polyfit(x, y, 1)[0])


def _judge_slope(says: str, rule: dict[str, Any], values: Sequence[float]) -> Verdict:
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


# --- the picture ----------------------------------------------------------------------------------------------------


def _draw(measured: Sequence[Measured], path: Path) -> None:
    """Draw the gradients over the depth and over the blocks, and the sizes, of each model."""
    names = list(dict.fromkeys(m.model for m in measured))
    figure, axes = plt.subplots(len(names), 3, figsize=(13, 3.6 * len(names)), constrained_layout=True, squeeze=False)
    marks = {"post": ("o", "-", "Post-LN"), "pre": ("s", "--", "Pre-LN")}
    for (left, middle, right), name in zip(axes, names, strict=True):
        for position, (mark, line, label) in marks.items():
            chosen = [m for m in measured if (m.model, m.position) == (name, position)]
            deepest = max(m.depth for m in chosen)
            style: dict[str, Any] = {"marker": mark, "ls": line, "label": label, "ms": 4}
            left.loglog(*_means([(m.depth, m.gradient) for m in chosen if m.block == m.depth]), **style)
            middle.semilogy(*_means([(m.block, m.gradient) for m in chosen if m.depth == deepest]), **style)
            right.plot(*_means([(m.block, m.size) for m in chosen if m.depth == deepest]), **style)
        left.set(title=f"{name}: last block", xlabel="depth L", ylabel="‖∂loss / ∂W²‖")
        depths = sorted({m.depth for m in measured})
        left.set_xticks(depths, [str(depth) for depth in depths])
        left.minorticks_off()
        middle.set(title=f"{name}: {max(depths)} blocks", xlabel="block", ylabel="‖∂loss / ∂W²‖")
        right.set(title=f"{name}: size of the activations", xlabel="block", ylabel="‖x‖² / d")
        for axis in (left, middle, right):
            axis.grid(alpha=0.3)
            axis.legend()
    save(figure, path)


def _means(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    """The mean over the seeds at each place."""
    by_place: dict[int, list[float]] = defaultdict(list)
    for place, value in points:
        by_place[place].append(value)
    return sorted(by_place), [fmean(by_place[place]) for place in sorted(by_place)]
