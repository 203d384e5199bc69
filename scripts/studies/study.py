"""A study: a grid of short trainings, and the claims that they are to test. ``conf/study/NAME.yaml`` describes one."""

import hashlib
import itertools
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import UserError
from engine.options.config import TrainConfig
from engine.options.rules import declared
from engine.similar import nearest
from scripts.studies.study_checks import load

PROJECT = Path(__file__).resolve().parents[2]
STUDIES = PROJECT / "conf/study"
IN_ASCII = {"²": "2", "σ": "sigma_", "τ": "tau"}
# These options change no result: they say where the images are, and how many processes decode them.
_NOT_DECISIVE = {key for key, option in declared(TrainConfig).items() if option.rules.path and option.rules.may_change}
_NOT_DECISIVE |= {"max_workers"}
SET_BY_THE_LAB = ("seed", "logger", "name", "output_dir", "checkpoint.every_minutes", "checkpoint.keep")


@dataclass(frozen=True)
class Cell:
    """One training of a study.

    Attributes:
        place: the label on each axis, in the order of the axes.
        seed: the seed.
        options: all options for ``train.py``.
    """

    place: dict[str, str]
    seed: int
    options: tuple[str, ...]

    @property
    def name(self) -> str:
        """``plain-1e-3-seed_0``, in characters that need no quotes anywhere."""
        labels = "-".join([*self.place.values(), f"seed_{self.seed}"])
        for letter, word in IN_ASCII.items():
            labels = labels.replace(letter, word)
        return re.sub(r"[^A-Za-z0-9.+_-]+", "_", labels)

    @property
    def run_name(self) -> str:
        """The name of its run directory. Other options give another name, so no run continues with other options."""
        return f"{self.name}-{self.digest}"

    @property
    def digest(self) -> str:
        """Eight digits that stand for the options that decide the result."""
        return hashlib.sha256(self.recipe.encode()).hexdigest()[:8]

    @property
    def recipe(self) -> str:
        """The options that decide the result, in the order of the alphabet, so that other studies find them."""
        return " ".join(sorted(_decisive(self.options), key=lambda option: option.partition("=")[0]))


@dataclass(frozen=True)
class Study:
    """What a study file says.

    Attributes:
        name: name of the file.
        title: heading of the report.
        paper: where the claims come from.
        axes: for each axis the labels, and the options of each label. In the file, ``$vit`` stands for the options that
            the scale calls ``vit``.
        seeds: every place of the grid is trained with each of them.
        base: options of all cells.
        more: options of all cells from the command line. They override all others.
        crash_below: a run that ends with less top-1, in percent, has crashed.
        claims: see ``scripts/studies/claims.py``.
        init: the measurement at initialisation, see ``scripts/studies/at_init.py``; empty if there is none.
        watch: the trainings to watch with instruments, see ``scripts/studies/watch.py``; empty if there are none.
        scale: the size of models and data: ``laptop``, or another that the file has.
    """

    name: str
    title: str
    paper: str
    axes: dict[str, dict[str, tuple[str, ...]]]
    seeds: tuple[int, ...]
    base: tuple[str, ...]
    more: tuple[str, ...]
    crash_below: float
    claims: tuple[dict[str, Any], ...]
    init: dict[str, Any]
    watch: dict[str, Any]
    scale: str

    @property
    def rules(self) -> tuple[dict[str, Any], ...]:
        """The rules of all claims."""
        return tuple(claim["rule"] for claim in self.claims)

    @property
    def command(self) -> str:
        """What a user types to get these trainings."""
        scale = [] if self.scale == "laptop" else [f"scale={self.scale}"]
        return shlex.join(["python", "scripts/lab.py", self.name, *scale, *_decisive(self.more)])

    @property
    def folder(self) -> str:
        """Where its results are, in the folder of all results: each scale has its own page."""
        return self.name if self.scale == "laptop" else f"{self.name}/{self.scale}"

    @property
    def down(self) -> list[str]:
        """The axes whose labels go down in maps and tables: all but the last."""
        return list(self.axes)[:-1]

    @property
    def across(self) -> str:
        """The axis whose labels go across in maps and tables: the last."""
        return list(self.axes)[-1]

    def lines(self) -> list[tuple[str, ...]]:
        """The labels of the axes ``down``, for each line of a map or table."""
        return list(itertools.product(*(self.axes[axis] for axis in self.down)))

    def cells(self) -> list[Cell]:
        """All cells, the first seed of every place before the second, so that a first picture comes early."""
        found = []
        for seed, labels in itertools.product(self.seeds, itertools.product(*self.axes.values())):
            place = dict(zip(self.axes, labels, strict=True))
            chosen = [option for axis, label in place.items() for option in self.axes[axis][label]]
            found.append(Cell(place, seed, (*self.base, *chosen, *self.more, f"seed={seed}")))
        return found


def study_names() -> list[str]:
    """The names of all studies."""
    return sorted(path.stem for path in STUDIES.glob("*.yaml"))


def read_study(name: str, scale: str = "laptop", more: tuple[str, ...] = ()) -> Study:
    """Read a study.

    Args:
        name: name of a file in ``conf/study/``.
        scale: a file in ``conf/study/scales/``, or one of the study's own scales.
        more: further options of all cells.

    Raises:
        UserError: if there is no such study or scale, the file has a mistake, or an option is one that the lab sets.
    """
    known = study_names()
    if name not in known:
        raise UserError(f"there is no study '{name}': {nearest(name, known)}")
    written = load(STUDIES / f"{name}.yaml")
    if scale not in written["scales"]:
        raise UserError(f"the study {name} has no scale={scale}: choose {', '.join(written['scales'])}")
    for option in more:
        if (key := option.partition("=")[0]) in SET_BY_THE_LAB:
            raise UserError(f"{key} cannot be typed here: the lab sets it for each training")
    sizes = written["scales"][scale]
    axes = {
        axis: {str(label): _spelled_out(options, sizes) for label, options in labels.items()}
        for axis, labels in written["axes"].items()
    }
    study = Study(
        name=name,
        title=written["title"],
        paper=written["paper"],
        axes=axes,
        seeds=tuple(written["seeds"]),
        base=_spelled_out([*sizes["base"], *written.get("base", [])], sizes),
        more=more,
        crash_below=sizes["crash_below"],
        claims=tuple(written.get("claims", ())),
        init=written.get("init", {}),
        watch=written.get("watch", {}),
        scale=scale,
    )
    _refuse_equal_cells(study)
    return study


def _refuse_equal_cells(study: Study) -> None:
    """Two labels with the same options would share one row."""
    found: dict[str, Cell] = {}
    for cell in study.cells():
        if other := found.get(cell.recipe):
            raise UserError(
                f"the cells {other.name} and {cell.name} of {study.name} have the same options: remove a label, or the "
                "option that you typed"
            )
        found[cell.recipe] = cell


def _decisive(options: tuple[str, ...]) -> list[str]:
    """The options that decide a result, as ``key=value``. Of an option that is there twice, the last value counts."""
    last = dict(option.partition("=")[::2] for option in options)
    return [f"{key}={value}" for key, value in last.items() if key not in _NOT_DECISIVE]


def _spelled_out(options: list[str], sizes: dict[str, Any]) -> tuple[str, ...]:
    """The options, with those that the scale calls ``name`` in the place of ``$name``."""
    found: list[str] = []
    for option in options:
        found += sizes[option[1:]] if option.startswith("$") else [option]
    return tuple(found)
