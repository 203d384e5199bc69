"""Name the runs of a command so that each run of a sweep or job array gets its own directory."""

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from engine.errors import UserError
from engine.options.arguments import parsed
from engine.options.paths import LONGEST_NAME

LONGEST_MADE = 128  # most bytes of a name made from options


def swept_options(job: Sequence[str], typed: Iterable[str], is_sweep: bool, is_array: bool) -> list[str]:
    """Return the options that differ between this job and the other jobs, as ``key=value``.

    Args:
        job: all options of the job.
        typed: the options as typed, including those with several values of a sweep.
        is_sweep: whether Hydra runs several jobs from this command (``--multirun``).
        is_array: whether this is a job of a SLURM array or of a sweep of Weights & Biases. The commands of its other
            jobs are unknown, so any option may differ. If the user set a name or folder for the job, only the options
            of its own sweep are returned.

    Raises:
        UserError: if a sweep contains the same value twice.
    """
    named = any(parsed(option).key_or_group in ("name", "output_dir", "output") for option in job)
    if is_array and not named:
        return list(job)
    if not is_sweep:
        return []
    fixed: dict[str, bool] = {}  # if an option is typed twice, the last one counts, as in Hydra
    for override in map(parsed, typed):
        fixed[override.get_key_element()] = not override.is_sweep_override()
        _refuse_twice(override)
    return [option for option in job if not fixed.get(parsed(option).get_key_element(), False)]


def _refuse_twice(override: Override) -> None:
    if not override.is_discrete_sweep() or "glob(" in str(override.input_line):
        return
    values = [_text(parsed(f"x={value}")) for value in override.sweep_string_iterator()]
    places = [os.path.abspath(value) for value in values] if override.key_or_group == "output_dir" else values
    if twice := [value for value, place in zip(values, places, strict=True) if places.count(place) > 1]:
        raise UserError(
            f"the sweep over {override.key_or_group} contains {twice[0]} twice, so two runs would share one "
            "directory: leave one out"
        )


def _text(override: Override) -> str:
    value = override.value()
    return value if isinstance(value, str) else override.get_value_element_as_str()


def set_name(composed: DictConfig, choices: dict[str, Any], swept: Sequence[str]) -> None:
    """Set the name and the directory of a training run.

    Without a name from the user, the run is named after its experiment or model. In a sweep, the swept options follow.

    Raises:
        UserError: if the name cannot be a folder name, or the runs of a sweep would share a directory.
    """
    shown = {"name", "output_dir"}
    if composed.name is None:
        group = "experiment" if choices.get("experiment") else "model"
        composed.name = str(choices[group])
        shown.add(group)
    composed.name = with_options(composed.name, swept, shown)
    _refuse_name(composed.name)
    if composed.output_dir is None:
        composed.output_dir = f"outputs/{composed.name}"
    elif swept:
        written: Any = OmegaConf.to_container(composed, resolve=False)
        _refuse_shared(written["output_dir"], swept)


def with_options(name: str, swept: Iterable[str], shown: Iterable[str]) -> str:
    """Append swept options to a name. If their text had to be changed or shortened, a hash follows.

    The hash depends only on this run's options, so a run keeps its name when the sweep gets more values.

    Args:
        name: the name to append to.
        swept: ``key=value`` of each swept option.
        shown: options to leave out, because ``name`` already shows their values.
    """
    options = [(o.key_or_group, _text(o)) for o in map(parsed, swept) if o.key_or_group not in shown]
    if not options:
        return name
    parts = [f"{key}_{value}" for key, value in options]
    # No "=" in the name: Hydra could not parse the path of such a run on a command line.
    made = "-".join([name, *(re.sub(r"[^\w.+-]+", "_", part) for part in parts)])
    # If a value looks like another option, two different runs could get the same name.
    unclear = any(f"-{key}_" in value for key, _ in options for _, value in options)
    exact = made == "-".join([name, *parts]) and not unclear
    if exact and len(os.fsencode(made)) <= LONGEST_MADE:
        return made
    mark = "-" + hashlib.sha256(os.fsencode(repr((name, options)))).hexdigest()[:8]
    return os.fsencode(made)[: LONGEST_MADE - len(mark)].decode(errors="ignore").rstrip("_-") + mark


def output_of(option: str, file: str, swept: Sequence[str]) -> str:
    """Return the file of one job, which ``option`` names. In a sweep, each job gets its own one in the same folder."""
    path = Path(file)
    return str(path.with_name(with_options(path.stem, swept, {option}) + path.suffix)) if swept else file


def _refuse_name(name: str) -> None:
    parts = name.split("/")
    if name == "":
        raise UserError("name is empty: leave it out, or give the run a name")
    if any(part in ("", ".", "..") or part != part.strip() for part in parts) or not name.isprintable():
        raise UserError(
            f"name={name!r} cannot be the name of a run: it must be a folder below outputs/, such as name=first or "
            "name=tests/first, without '.', '..', spaces at its ends, or characters that cannot be printed"
        )
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in parts):
        raise UserError(f"name={name[:20]}… is too long: a folder name can have at most {LONGEST_NAME} bytes")


def _refuse_shared(output_dir: str, swept: Sequence[str]) -> None:
    """Refuse an ``output_dir`` that several runs of a sweep would share.

    Args:
        output_dir: the directory before interpolation.
        swept: ``key=value`` of each swept option.
    """
    keys = {parsed(option).key_or_group for option in swept} - {"output_dir"}
    if "${name}" not in output_dir and not all(f"${{{key}}}" in output_dir for key in keys):
        raise UserError(
            f"output_dir={output_dir} would be the directory of every run of the sweep: leave it out, or type "
            f"'output_dir={output_dir.rstrip('/')}/${{name}}'"
        )
