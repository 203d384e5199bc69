"""Where metrics go beside ``metrics.jsonl``: Weights & Biases, or nowhere."""

import logging
import os
import secrets
from pathlib import Path
from typing import Any, Protocol

from engine.config import LoggerConfig

log = logging.getLogger(__name__)

ONLINE_TIMEOUT = 15.0  # seconds to wait for the server before going on offline


class Logger(Protocol):
    """Takes a run's metrics."""

    run_id: str | None

    def log(self, values: dict[str, Any], step: int) -> None:
        """Metrics of a step."""
        ...

    def picture(self, name: str, path: Path, step: int) -> None:
        """A PNG file."""
        ...

    def summarise(self, values: dict[str, Any]) -> None:
        """What the run came to."""
        ...

    def finish(self) -> None:
        """Flush."""
        ...


class NullLogger:
    """Takes metrics and forgets them (``logger=none``, and every process but the first)."""

    run_id: str | None = None

    def log(self, values: dict[str, Any], step: int) -> None: ...

    def picture(self, name: str, path: Path, step: int) -> None: ...

    def summarise(self, values: dict[str, Any]) -> None: ...

    def finish(self) -> None: ...


class WandbLogger:
    """Weights & Biases; offline unless asked otherwise, and never a reason for training to stop.

    Args:
        cfg: mode, project, entity, group.
        name: the run's.
        folder: where offline files lie.
        config: the whole resolved config.
        run_id: of the run to go on with, or None for a new one.
    """

    def __init__(self, cfg: LoggerConfig, name: str, folder: Path, config: dict[str, Any], run_id: str | None):
        import wandb  # takes seconds, and only the first process needs it

        self.wandb: Any = wandb
        self.run_id: str | None = run_id or secrets.token_hex(4)
        arguments = {
            "project": cfg.project,
            "entity": cfg.entity,
            "group": cfg.group,
            "name": name,
            "dir": str(folder),
            "config": config,
            "id": self.run_id,
            "resume": "allow",
        }
        self.run = self._start(_mode(cfg.mode), arguments)
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def _start(self, mode: str, arguments: dict[str, Any]) -> Any:
        # Its lines stay out of ours; an online run still shows its address in train.log.
        settings = self.wandb.Settings(silent=True, init_timeout=ONLINE_TIMEOUT)
        try:
            run = self.wandb.init(mode=mode, settings=settings, **arguments)
        except Exception as error:  # no network, no such project, a refused key: training goes on all the same
            if mode == "offline":
                raise
            log.warning("Weights & Biases cannot be reached (%s): going on offline", str(error).splitlines()[0])
            return self.wandb.init(mode="offline", settings=self.wandb.Settings(silent=True), **arguments)
        if mode == "online":
            log.info("Weights & Biases: %s", run.url)
        return run

    def log(self, values: dict[str, Any], step: int) -> None:
        """Metrics of a step."""
        self.run.log(values | {"step": step})

    def picture(self, name: str, path: Path, step: int) -> None:
        """A PNG file."""
        self.run.log({name: self.wandb.Image(str(path)), "step": step})

    def summarise(self, values: dict[str, Any]) -> None:
        """What the run came to."""
        self.run.summary.update(values)

    def finish(self) -> None:
        """Flush."""
        self.run.finish()


def _mode(wanted: str) -> str:
    if wanted == "auto":
        return "online" if os.environ.get("WANDB_API_KEY") else "offline"
    return wanted


def build_logger(
    cfg: LoggerConfig, name: str, folder: Path, config: dict[str, Any], run_id: str | None, is_main: bool
) -> Logger:
    """The logger that ``cfg`` names, on the first process; the others log nothing."""
    if not is_main or cfg.name == "none":
        return NullLogger()
    return WandbLogger(cfg, name, folder, config, run_id)
