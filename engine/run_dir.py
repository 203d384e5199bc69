"""One run, one directory: what lies where, and whether a command may go on with what is there."""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from engine.config import TrainConfig
from engine.errors import UserError
from engine.json_text import to_json
from engine.options import declared
from engine.renamed import translated
from engine.settings import as_container, defaults_of, flatten, write_settings


class RunDirectory:
    """The directory of a run: ``config.yaml``, ``metrics.jsonl``, ``checkpoints/``, ``plots/`` and more.

    Args:
        path: the directory.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.stability = self.path / "stability.jsonl"
        self.log = self.path / "train.log"
        self.checkpoints = self.path / "checkpoints"
        self.plots = self.path / "plots"
        self.crashes = self.path / "crashes"

    def has_checkpoints(self) -> bool:
        """Whether there is anything to go on with."""
        return any(self.checkpoints.glob("*.pt"))

    def refuse_unwritable(self) -> None:
        """Raise where the directory cannot be made or written."""
        try:
            for folder in (self.checkpoints, self.plots):
                folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.path).close()
        except OSError as error:
            raise UserError(
                f"output_dir={self.path} cannot be written ({error.strerror}): set output_dir to a folder that can"
            ) from error

    def refuse_conflict(self, settings: TrainConfig) -> None:
        """Compare the settings with those of the run that is already here, if one is.

        Raises:
            UserError: if ``resume=never`` and there is one, or it had another recipe.
        """
        if settings.resume == "never" and (self.has_checkpoints() or self.read_metrics()):
            raise UserError(
                f"{self.path} holds a run and resume=never: set another name=…, or resume=auto to go on with it"
            )
        if before := self._settings_before():
            refuse_other_recipe(before, settings, f"{self.path} holds a run with another recipe")

    def backend_of(self, settings: TrainConfig) -> str | None:
        """What ``data.backend=auto`` meant when the run here began; None where the settings or no run decide."""
        before = self._settings_before()
        return before["data"]["backend"] if before and settings.data.backend == "auto" else None

    def _settings_before(self) -> dict[str, Any] | None:
        """Those of the run that is here. A run that stopped before its first checkpoint starts anew."""
        if not self.has_checkpoints() or not self.config.is_file():
            return None
        found: Any = OmegaConf.to_container(OmegaConf.load(self.config))
        return translated(found)

    def begin(self, settings: TrainConfig, step: int, validated: int) -> None:
        """Make the files ready for a run that goes on from ``step``, or starts anew: metrics and ``config.yaml``.

        Args:
            settings: to write down.
            step: that the run stands at.
            validated: the step of its last validation.

        Raises:
            UserError: if they cannot be written.
        """
        try:
            self.cut_metrics(step, validated)
            write_settings(settings, self.config)
        except OSError as error:
            raise UserError(
                f"{error.filename or self.path} cannot be written ({error.strerror}): free space or allow it, and run "
                "the same command again"
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out of the directory for as long as the context lasts.

        Raises:
            UserError: if another process trains here.
        """
        with open(self.path / ".lock", "w", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(f"another process trains in {self.path}: set another name=…, or stop it") from error
            except OSError:
                pass  # a file system without locks
            yield

    def cut_metrics(self, step: int, validated: int) -> None:
        """Drop lines of metrics and readings after ``step``: the run goes on from there and writes them again.

        So does a validation after ``validated``.

        Where it starts anew, what an earlier one left without a checkpoint is set aside, records of crashes included.
        """
        if step == 0 and self.crashes.is_dir():
            aside = self.crashes.with_name("crashes.before")
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(self.crashes, aside)
        for file in (self.metrics, self.stability):
            if step == 0 and file.is_file():
                os.replace(file, file.with_name(f"{file.stem}.before.jsonl"))
            last = {"val": min(validated, step)}
            lines = [line for line in _read_lines(file) if line["step"] <= last.get(str(line.get("split")), step)]
            scratch = file.with_suffix(".tmp")
            scratch.write_text("".join(to_json(line) + "\n" for line in lines), encoding="utf-8")
            os.replace(scratch, file)

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``; a last line cut short by a crash is left out."""
        return _read_lines(self.metrics)

    def read_stability(self) -> list[dict[str, Any]]:
        """The lines of ``stability.jsonl``, readings of every layer."""
        return _read_lines(self.stability)


def _read_lines(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        return []
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines


def refuse_other_recipe(before: dict[str, Any], settings: TrainConfig, what: str) -> None:
    """Raise where settings differ from earlier ones in more than may differ, listing each key old → new."""
    # An option that came after the run began had its default then.
    old, new = defaults_of(settings) | flatten(before), flatten(as_container(settings))
    may_change = {key for key, option in declared(TrainConfig).items() if option.may_change}
    differing = [
        f"{key} {old.get(key)} → {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and key not in may_change and not _is_auto(key, new)
    ]
    if differing:
        raise UserError(f"{what}: {', '.join(differing)}; set another name=… to start a new run")


def _is_auto(key: str, new: dict[str, Any]) -> bool:
    """Whether an option leaves the choice open, so that the one of before is kept."""
    return key == "data.backend" and new[key] == "auto"
