"""Test the papers' claims in miniature: train the grid of a study, and write the verdict on each claim.

python scripts/lab.py                                  # lists the studies
python scripts/lab.py postln_preln phase=init          # minutes: what the theory predicts at initialisation
python scripts/lab.py replacements                     # hours: goes on where it stopped, training by training
python scripts/lab.py replacements part=3/8            # the third of eight parts, for eight machines or a job array

Writes docs/lab/STUDY/: results.csv, pictures and README.md. A training whose row is in results.csv is not run again.

Arguments:
  phase=init|train|watch|report
                           only this phase; watch: train some cells again, with instruments, and draw what they show;
                           report: write the page again from the rows that are there
  scale=laptop             the size of models and data, or gpu, imagenet (conf/study/scales/)
  part=K/N                 only every N-th training, beginning with the K-th; K is a number from 1 to N. A part neither
                           measures at initialisation nor watches
  at_once=N                trainings at the same time (default: one for each GPU, without GPUs one for each core)
  threads=1                threads of each training
  borrow=true|false        take rows of trainings with the same options from the other studies, unless they are older
                           than the claims
  to=docs/lab              folder of the results
  runs=outputs/lab         folder of the run directories
All other arguments, such as data.root=…, are options of all trainings.
"""

import sys
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tqdm import tqdm

from engine.device import default_workers
from engine.errors import UserError
from engine.options.config import TrainConfig
from engine.options.rules import declared
from scripts.common.command_line import command
from scripts.studies.at_init import verdicts_at_init
from scripts.studies.claims import Verdict, judge
from scripts.studies.crash_map import draw_crash_map
from scripts.studies.origin import commit_now, origin_of, rules_at
from scripts.studies.report import write_report
from scripts.studies.results import Results, Row, row_of
from scripts.studies.study import PROJECT, STUDIES, Cell, Study, read_study
from scripts.studies.study_checks import load
from scripts.studies.training import Stopped, Trainer, forget, refuse_mistakes, visible_gpus
from scripts.studies.watch import draw_all, watch, watched_cells

KNOWN = {key.partition(".")[0] for key in declared(TrainConfig)}  # the first words of a training's options
PHASES = ("all", "init", "train", "watch", "report")


@dataclass(frozen=True)
class Arguments:
    """What was typed; see the head of this file."""

    study: str
    phase: str = "all"
    scale: str = "laptop"
    part: str = "1/1"
    at_once: str = ""
    threads: str = "1"
    borrow: str = "true"
    to: str = str(PROJECT / "docs/lab")
    runs: str = str(PROJECT / "outputs/lab")
    options: tuple[str, ...] = ()

    @classmethod
    def parse(cls, typed: list[str]) -> "Arguments":
        """Read the command line."""
        name, *rest = typed
        own = {field.name for field in fields(cls)} - {"study", "options"}
        pairs = [argument.partition("=") for argument in rest]
        for key in {key for key, *_ in pairs} - own - KNOWN:
            if near := get_close_matches(key, own, n=1, cutoff=0.75):
                raise UserError(f"there is no argument '{key}': did you mean {near[0]}?")
        if bare := [key for key, equals, _ in pairs if not equals]:
            raise UserError(f"{bare[0]} is no argument: type NAME=VALUE; --help lists them")
        values = {key: value for key, _, value in pairs if key in own}
        arguments = cls(name, **values, options=tuple("".join(pair) for pair in pairs if pair[0] not in own))
        for name, choices in (("phase", PHASES), ("borrow", ("true", "false"))):
            if (value := getattr(arguments, name)) not in choices:
                raise UserError(f"{name}={value} is unknown: choose {', '.join(choices)}")
        arguments.chosen([])  # checks part
        return arguments

    def number(self, name: str) -> int:
        """The value of an argument that is a whole number above 0."""
        text = getattr(self, name)
        if not text.isdecimal() or int(text) < 1:
            raise UserError(f"{name}={text} must be a whole number above 0")
        return int(text)

    def trainings_at_once(self) -> int:
        """``at_once``, or one training for each GPU; without GPUs one for each core."""
        if self.at_once:
            return self.number("at_once")
        return len(visible_gpus()) or max(1, default_workers(1) // self.number("threads"))

    def chosen(self, cells: list[Cell]) -> list[Cell]:
        """The cells of ``part``."""
        first, _, step = self.part.partition("/")
        if not (first.isdecimal() and step.isdecimal() and 1 <= int(first) <= int(step)):
            raise UserError(f"part={self.part} must be K/N, with K from 1 to N: 3/8 is the third of eight parts")
        return cells[int(first) - 1 :: int(step)]


def train_missing(study: Study, results: Results, arguments: Arguments, at_init: list[Verdict]) -> None:
    """Train the cells that have no row yet, and add their rows. The page is written again after each."""
    cells = arguments.chosen(study.cells())
    now = rules_at(commit_now(), study.name)
    if now is None:
        print("git does not know this commit, so nobody can tell whether rows are younger than the rules of the claims")
    elif now != study.rules:
        print(f"the rules of {study.name} are not committed: commit them first, so that no row is older than they are")

    def has_these_rules(row: Row) -> bool:  # a row that is older than the rules cannot test the claims
        return rules_at(row["commit"], study.name) == study.rules

    if arguments.borrow == "true" and (borrowed := results.borrow(cells, has_these_rules)):
        print(f"{borrowed} rows of the same trainings are taken from other studies")
    missing = results.missing(cells)
    threads, at_once = arguments.number("threads"), arguments.trainings_at_once()
    trainer = Trainer(Path(arguments.runs).resolve() / study.folder, study.crash_below, threads, visible_gpus())
    with tqdm(total=len(missing), desc=study.name, unit="training", disable=None) as bar:
        for cell, outcome in trainer.train_all(missing, at_once):
            run_dir = trainer.folder / cell.run_name
            results.add(row_of(cell, outcome, origin_of(run_dir, threads, trainer.commits[cell.run_name])))
            forget(run_dir)
            top1 = "–" if outcome.top1 is None else f"{outcome.top1:.2f} %"
            tqdm.write(f"{cell.name}  {top1}{'  crashed' if outcome.crashed else ''}  {outcome.seconds:.0f} s")
            bar.update()
            report(study, results, at_init)


def report(study: Study, results: Results, at_init: list[Verdict]) -> list[Verdict]:
    """Write the pictures and the page of a study. Returns the verdicts on its claims."""
    folder, rows = results.path.parent, results.of_study()
    found = [*at_init, *(judge(claim, rows) for claim in study.claims)]
    folder.mkdir(parents=True, exist_ok=True)
    pictures = ["at_init.png"] if (folder / "at_init.png").is_file() else []
    if rows:
        draw_crash_map(study, rows, folder / "map.png")
        pictures.append("map.png")
    pictures += draw_all(study, folder)
    older = sum(rules_at(row["commit"], study.name) not in (None, study.rules) for row in rows)
    write_report(folder, study, results, found, pictures, older)
    return found


def title(path: Path) -> str:
    """The title of a study's file, or what is wrong with it."""
    try:
        return str(load(path)["title"])
    except UserError as error:
        return f"cannot be read: {error}"


@command
def main() -> int:
    if len(sys.argv) < 2 or {"-h", "--help"} & set(sys.argv):
        print(__doc__)
        for path in sorted(STUDIES.glob("*.yaml")):
            print(f"  {path.stem:16} {title(path)}")
        return 0
    try:
        arguments = Arguments.parse(sys.argv[1:])
        study = read_study(arguments.study, arguments.scale, arguments.options)
        folder, phase = Path(arguments.to) / study.folder, arguments.phase
        if phase in ("init", "watch") and not getattr(study, phase):
            raise UserError(f"the study {study.name} has no phase={phase}: its file has no part '{phase}'")
        results = Results(folder / "results.csv", study)
        is_whole = phase == "all" and arguments.part == "1/1"
        measure = phase == "init" or (is_whole and not (folder / "at_init.csv").is_file())
        if phase in ("all", "train", "watch"):
            refuse_mistakes([*results.missing(arguments.chosen(study.cells())), *watched_cells(study)])
        at_init = verdicts_at_init(study, folder, measure)
        if phase in ("all", "train"):
            train_missing(study, results, arguments, at_init)
        if phase == "watch" or is_whole:
            runs = Path(arguments.runs).resolve() / study.folder
            watch(study, folder, runs, arguments.trainings_at_once(), arguments.number("threads"))
        for verdict in report(study, results, at_init):
            print(f"{verdict.verdict:14} {verdict.claim}: {verdict.evidence}")
        print(f"written: {folder / 'README.md'}")
    except (Stopped, KeyboardInterrupt):
        print("stopped: the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
