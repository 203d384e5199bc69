"""The directory of a run: its files, and the check whether a command may resume the run in it."""

import fcntl
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EACCES
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import AliasToken, YAMLError

from data.backends import BACKENDS
from engine.errors import UserError, reason
from engine.json_text import to_json
from engine.options.config import TrainConfig
from engine.options.plain import write_settings
from engine.options.recipe import refuse_other_recipe
from engine.options.renamed import translated
from engine.options.rules import declared

log = logging.getLogger(__name__)

GROUPS = {name.partition(".")[0] for name in declared(TrainConfig) if "." in name}  # of options


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
        self.lock = self.path / ".lock"
        self.checkpoints = self.path / "checkpoints"
        self.plots = self.path / "plots"
        self.crashes = self.path / "crashes"

    def has_checkpoints(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return any(self.checkpoints.glob("*.pt"))

    def refuse_unwritable(self) -> None:
        """Create the directory.

        Raises:
            UserError: if it cannot be created or written.
        """
        try:
            for folder in (self.checkpoints, self.plots):
                folder.mkdir(parents=True, exist_ok=True)
            for folder in (self.path, self.checkpoints):
                tempfile.TemporaryFile(dir=folder).close()
            for file in (self.log, self.lock, self.metrics, self.stability, self.config):
                if file.exists() and not os.access(file, os.W_OK):
                    raise PermissionError(EACCES, f"{file.name}: {os.strerror(EACCES)}")
        except OSError as error:
            raise UserError(
                f"output_dir={self.path} cannot be written ({error.strerror}): set output_dir to another folder"
            ) from error

    def refuse_conflict(self, settings: TrainConfig) -> None:
        """Compare the settings with those of the run that is already in this directory, if there is one.

        Raises:
            UserError: if there is a run and ``resume=never``, or if its recipe differs.
        """
        if settings.resume == "never" and (self.has_checkpoints() or self.read_metrics()):
            raise UserError(
                f"{self.path} holds a run, and resume=never: set another name=…, or resume=auto to continue it"
            )
        if before := self._settings_before():
            refuse_other_recipe(before, settings, f"{self.path} holds a run with another recipe")

    def backend_of(self, settings: TrainConfig) -> str | None:
        """Return the backend that the run in this directory uses, if ``data.backend=auto``.

        Returns:
            The backend; None if the settings name a backend, or if there is no run yet.
        """
        before = self._settings_before()
        found = before["data"].get("backend") if before and settings.data.backend == "auto" else None
        return found if found in BACKENDS else None

    def _settings_before(self) -> dict[str, Any] | None:
        """Return the settings of the run in this directory; None without a checkpoint, or if the file is damaged.

        A checkpoint holds the settings as well, and is compared later.
        """
        if not self.has_checkpoints():
            return None
        try:
            found = self.settings()
        except UserError:
            return None
        return found if found.keys() >= GROUPS else None

    def settings(self) -> dict[str, Any]:
        """Return the settings in ``config.yaml``, with today's names of options.

        Raises:
            UserError: if there is no such file, or it is damaged. The message names the key, if it is known.
        """
        if not self.config.is_file():
            raise UserError(
                f"{self.path} has no config.yaml, which says what the run trained: name the folder of a run"
            )
        try:
            if any(isinstance(token, AliasToken) for token in yaml.scan(self.config.read_text(encoding="utf-8"))):
                raise ValueError("it has aliases, with which a few lines fill the memory")
            found: Any = OmegaConf.to_container(OmegaConf.load(self.config), resolve=True)
            if not isinstance(found, dict):
                raise ValueError("it holds no options by name")
            if wrong := [name for name, value in found.items() if name in GROUPS and not isinstance(value, dict)]:
                raise ValueError(f"{wrong[0]} is {found[wrong[0]]}, and no group of options")
        except (OSError, ValueError, RecursionError, YAMLError, OmegaConfBaseException) as error:
            raise UserError(f"{self.config} is damaged ({reason(error)}): restore it, or name another run") from error
        return translated(found)

    def begin(self, settings: TrainConfig, step: int, validated: int) -> None:
        """Prepare the metrics files and write ``config.yaml``, for a new run (``step`` 0) or one that resumes.

        Args:
            settings: the settings to write.
            step: the step that the run starts from.
            validated: the step of its last validation.

        Raises:
            UserError: if a file cannot be written.
        """
        if step == 0 and self.read_metrics():
            log.warning("no checkpoint is left: starting from step 0; metrics.before.jsonl has the earlier metrics")
        try:
            self.cut_metrics(step, validated)
            write_settings(settings, self.config)
        except OSError as error:
            raise _unwritable(error.filename or self.path, error) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the directory while the context is active, so that no other run uses it.

        Raises:
            UserError: if another process trains in this directory, or the lock's file cannot be opened.
        """
        try:
            opened = open(self.lock, "w", encoding="utf-8")  # noqa: SIM115  (the next statement closes it)
        except OSError as error:
            raise _unwritable(self.lock, error) from error
        with opened as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(f"another process trains in {self.path}: set another name=…, or stop it") from error
            except OSError:
                pass  # the file system has no locks
            yield

    def cut_metrics(self, step: int, validated: int) -> None:
        """Remove the metrics and readings after ``step``, because the resumed run writes them again.

        Validation lines after ``validated`` are removed for the same reason. At ``step`` 0 there may be files of an
        earlier run that has no checkpoint. They are renamed: ``metrics.before.jsonl``, ``stability.before.jsonl`` and
        ``crashes.before``.
        """
        if step == 0 and self.crashes.is_dir():
            aside = self.crashes.with_name("crashes.before")
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(self.crashes, aside)
        validated = min(validated, step)
        for file in (self.metrics, self.stability):
            if step == 0 and file.is_file():
                os.replace(file, file.with_name(f"{file.stem}.before.jsonl"))
            lines = _read_lines(file)
            kept = [line for line in lines if line["step"] <= (validated if line.get("split") == "val" else step)]
            scratch = file.with_suffix(".tmp")
            scratch.write_text("".join(to_json(line) + "\n" for line in kept), encoding="utf-8")
            os.replace(scratch, file)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the lines of ``metrics.jsonl``. What is no such line, as after a crash, is skipped."""
        return [line for line in _read_lines(self.metrics) if isinstance(line.get("split"), str)]

    def read_stability(self) -> list[dict[str, Any]]:
        """Return the lines of ``stability.jsonl``, each a reading of all layers."""
        return [line for line in _read_lines(self.stability) if isinstance(line.get("layers"), dict)]


def _unwritable(file: str | Path, error: OSError) -> UserError:
    return UserError(
        f"{file} cannot be written ({error.strerror}): free space or allow writing, and run the same command again"
    )


def _read_lines(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        return []
    lines = []
    for text in file.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError, RecursionError):  # no JSON, or numbers or brackets without end
            line = json.loads(text)
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                lines.append(line)
    return lines
