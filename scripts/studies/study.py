"""A study: a grid of short trainings, and the claims that they are to test. ``conf/study/NAME.yaml`` describes one."""

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from engine.config import TrainConfig
from engine.errors import UserError
from engine.options import declared
from engine.similar import nearest

PROJECT = Path(__file__).resolve().parents[2]
STUDIES = PROJECT / "conf/study"
IN_ASCII = {"²": "2", "σ": "sigma_", "τ": "tau"}
_PLACES = {key for key, option in declared(TrainConfig).items() if option.rules.path and option.may_change}


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
        """``plain-1e-3-seed_0``: the name of its run directory, in characters that need no quotes anywhere."""
        labels = "-".join([*self.place.values(), f"seed_{self.seed}"])
        for letter, word in IN_ASCII.items():
            labels = labels.replace(letter, word)
        return re.sub(r"[^A-Za-z0-9.+_-]+", "_", labels)

    @property
    def recipe(self) -> str:
        """The options that decide the result, in the order of the alphabet, so that other studies find them.

        Those are left out that a resume may change and that hold a path, such as where the images are. Of an option
        that is there twice, the last value counts.
        """
        decisive = dict(option.partition("=")[::2] for option in self.options)
        return " ".join(f"{key}={value}" for key, value in sorted(decisive.items()) if key not in _PLACES)


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
        more: options of all cells from the command line. They have the last word.
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

    def cells(self) -> list[Cell]:
        """All cells, the first seed of every place before the second, so that a first picture comes early."""
        found = []
        for seed, labels in itertools.product(self.seeds, itertools.product(*self.axes.values())):
            place = dict(zip(self.axes, labels, strict=True))
            chosen = [option for axis, label in place.items() for option in self.axes[axis][label]]
            found.append(Cell(place, seed, (*self.base, *chosen, *self.more, f"seed={seed}")))
        return found


def read_study(name: str, scale: str = "laptop", more: tuple[str, ...] = ()) -> Study:
    """Read a study.

    Args:
        name: name of a file in ``conf/study/``.
        scale: one of the file's scales.
        more: further options of all cells.

    Raises:
        UserError: if there is no such study or scale.
    """
    known = sorted(path.stem for path in STUDIES.glob("*.yaml"))
    if name not in known:
        raise UserError(f"there is no study '{name}': {nearest(name, known)}")
    written = yaml.safe_load((STUDIES / f"{name}.yaml").read_text(encoding="utf-8"))
    if scale not in written["scales"]:
        raise UserError(f"the study {name} has no scale={scale}: choose {', '.join(written['scales'])}")
    sizes = written["scales"][scale]
    axes = {
        axis: {str(label): _spelled_out(options, sizes) for label, options in labels.items()}
        for axis, labels in written["axes"].items()
    }
    return Study(
        name=name,
        title=written["title"],
        paper=written["paper"],
        axes=axes,
        seeds=tuple(written["seeds"]),
        base=_spelled_out(sizes["base"], sizes),
        more=more,
        crash_below=sizes["crash_below"],
        claims=tuple(written.get("claims", ())),
        init=written.get("init", {}),
        watch=written.get("watch", {}),
        scale=scale,
    )


def _spelled_out(options: list[str], sizes: dict[str, Any]) -> tuple[str, ...]:
    """The options, with those that the scale calls ``name`` in the place of ``$name``."""
    return tuple(o for option in options for o in (sizes[option[1:]] if option.startswith("$") else [option]))
