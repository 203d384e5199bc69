"""Find the highest learning rate at which a model trains from a cold start, in a few minutes.

python scripts/lr_range.py model=lipsformer_swin_tiny data.root=/path/to/imagenet
python scripts/lr_range.py experiment=quickstart optim=adamw2 steps=200

Trains the first steps at the recipe's rate, then at higher ones until the training fails, then between the highest that
trains and the lowest that fails. A training fails if its loss is not finite, or if it learns less than half as much as
the best of the others. Nothing is validated or saved.

Arguments:
  steps=100  steps of each training; fewer than 50 say little
  All others are options of train.py. The schedule's warm-up is switched off, because it is what should not be needed.

The rate that a whole training survives may be lower: give more steps, and try seed=1 too.
"""

import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.errors import UserError
from engine.run_dir import RunDirectory
from scripts.common.command_line import command
from scripts.studies.study import PROJECT
from scripts.studies.training import NOT_FINITE, why_it_ended

FACTOR = 4.0  # from one rate to the next, until one fails
CLOSE = 1.5  # the search ends when the lowest rate that fails is at most this many times the highest that trains
FEW = 50  # steps: after fewer, most models have hardly begun to learn
FARTHEST = 4**6  # rates this many times higher or lower than the recipe's are not tried
ALWAYS = (
    "schedule.warmup_epochs=0",
    "logger=none",
    "log_every=1",
    "eval_every=1000000",
    "checkpoint.every_minutes=null",
)


@dataclass(frozen=True)
class Trial:
    """The first steps at one learning rate.

    Attributes:
        rate: the learning rate.
        first: loss of the first step.
        last: mean loss of the last quarter of the steps; infinite if a loss was not finite.
        steps: steps that were trained.
    """

    rate: float
    first: float
    last: float
    steps: int

    @property
    def learned(self) -> float:
        """How much lower the loss became; minus infinity if it was not finite."""
        return self.first - self.last if math.isfinite(self.first) else -math.inf


def trains(trial: Trial, trials: list[Trial]) -> bool:
    """Whether a trial learned at least half as much as the best of all trials."""
    return trial.learned > 0 and trial.learned >= max(t.learned for t in trials) / 2


def limits(trials: list[Trial]) -> tuple[float | None, float | None]:
    """The highest rate that trains, and the lowest above it that fails; None where there is no such rate.

    A rate that fails below the one that learned most is too slow, not unstable, and does not count.
    """
    best = max(trials, key=lambda t: t.learned)
    fastest = best.rate if best.learned > 0 else 0.0
    failing = min((t.rate for t in trials if not trains(t, trials) and t.rate > fastest), default=None)
    good = max((t.rate for t in trials if trains(t, trials) and t.rate < (failing or math.inf)), default=None)
    return good, failing


def search(first: Trial, train: Callable[[float], Trial]) -> tuple[float | None, float | None, list[Trial]]:
    """Find the highest rate that trains.

    Args:
        first: the trial at the recipe's rate.
        train: trains at a rate.

    Returns:
        The highest rate that trains, the lowest above it that fails, and all trials. A rate is None if all that were
        tried fail, or none does.
    """
    trials = [first]
    while True:
        good, failing = limits(trials)
        if good and failing and failing / good <= CLOSE:
            return good, failing, trials
        if good and failing:
            rate = math.sqrt(good * failing)
        else:
            rate = max(t.rate for t in trials) * FACTOR if good else min(t.rate for t in trials) / FACTOR
        if not 1 / FARTHEST <= rate / first.rate <= FARTHEST:
            return good, failing, trials
        trials.append(train(rate))


class Trainer:
    """Trains the first steps with ``train.py``, in a process of its own.

    Args:
        options: for ``train.py``.
        steps: of each trial.
        folder: for the run directories.
        signals: those that this process got so far: the first one ends it, and its training before it.
    """

    def __init__(self, options: list[str], steps: int, folder: Path, signals: Sequence[int] = ()):
        self.options, self.steps, self.folder, self.signals = options, steps, folder, signals

    def __call__(self, rate: float | None) -> Trial:
        """Train at a rate; None: that of the recipe.

        Raises:
            UserError: if the training cannot start.
        """
        folder = self.folder / f"{rate}"
        own = [] if rate is None else [f"optim.lr={rate!r}"]
        command = [sys.executable, str(PROJECT / "train.py"), *self.options, *ALWAYS, *own]
        process = subprocess.Popen(
            [*command, f"output_dir={folder}", "name=lr_range"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"HYDRA_FULL_ERROR": "0"},
        )
        try:
            while process.poll() is None and len(_steps(folder)) < self.steps and not self.signals:
                time.sleep(0.1)
        finally:
            process.kill()
            process.wait()
        said = process.communicate()[1]
        if self.signals:
            sys.exit(128 + self.signals[0])
        lines = _steps(folder)[: self.steps]
        diverged = NOT_FINITE.search(said) is not None
        if len(lines) < self.steps and not diverged:
            raise UserError(why_it_ended(process.returncode, said))
        if not lines and rate is None:
            raise UserError("the first loss at the recipe's rate is not finite: set a lower optim.lr")
        losses = [math.inf if line["loss"] is None else line["loss"] for line in lines]
        last = math.inf if diverged else fmean(losses[-max(1, self.steps // 4) :])
        return Trial(lines[0]["lr"] if lines else rate or math.nan, losses[0] if losses else math.inf, last, len(lines))


def _steps(folder: Path) -> list[dict[str, Any]]:
    """The lines of the training steps so far."""
    return [line for line in RunDirectory(folder).read_metrics() if line["split"] == "train"]


def _shown(trial: Trial) -> str:
    last = "not finite" if math.isinf(trial.last) else f"{trial.last:.3f}"
    return f"lr {trial.rate:.2e}  loss {trial.first:.3f} → {last}"


def steps_and_options(typed: list[str]) -> tuple[int, list[str]]:
    """Return the steps of each training, and the options for ``train.py``.

    Raises:
        UserError: if the number of steps is no such number, or an argument means something else than it seems to.
    """
    own = [word for word in typed if word.startswith("steps=")]
    number = own[-1].removeprefix("steps=") if own else "100"
    for key in {word.partition("=")[0] for word in typed} & {"step", "max_steps"}:
        raise UserError(f"{key}= is no argument here: type steps=N for the steps of each training")
    if not number.isdecimal() or int(number) < 4:
        raise UserError(f"steps={number} must be a whole number of 4 or more")
    if int(number) < FEW:
        print(f"warning: {number} steps say little about a rate: give {FEW} or more", file=sys.stderr)
    return int(number), [word for word in typed if word not in own]


@command
def main() -> int:
    typed = sys.argv[1:]
    if not typed or {"-h", "--help"} & set(typed):
        print(__doc__)
        return 0
    steps, options = steps_and_options(typed)
    signals: list[int] = []  # only noted: an exception while a training is being started would leave it behind
    for ending in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(ending) != signal.SIG_IGN:  # as nohup sets SIGHUP
            signal.signal(ending, lambda number, _: signals.append(number))
    with tempfile.TemporaryDirectory(prefix="lr_range-") as folder:
        trainer = Trainer(options, steps, Path(folder), signals)
        recipe = trainer(None)
        print(f"{_shown(recipe)}  (the recipe's)", flush=True)

        def train(rate: float) -> Trial:
            trial = trainer(rate)
            print(_shown(trial), flush=True)
            return trial

        good, failing, _ = search(recipe, train)
    print()
    if good is None:
        print(f"no rate down to {recipe.rate / FARTHEST:.1e} trains within {steps} steps")
        return 1
    above = f"{failing:.2e} fails" if failing else "no higher rate that was tried fails"
    print(f"highest stable learning rate  {good:.2e}  ({above}; {steps} steps, no warm-up)")
    print(f"the recipe's                  {recipe.rate:.2e}  (the highest is {good / recipe.rate:.2g} times as high)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
