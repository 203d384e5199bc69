"""Where metrics go beside ``metrics.jsonl``: Weights & Biases, or nowhere."""

import logging
import os
import secrets
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

from engine.config import LoggerConfig
from engine.errors import reason

log = logging.getLogger(__name__)

PATIENCE = 15.0  # seconds to wait for the server


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
    """Takes metrics and forgets them (``logger=none``, and every process but the first).

    Args:
        run_id: kept for a later start with a logger.
    """

    def __init__(self, run_id: str | None = None):
        self.run_id = run_id

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
        self.broken = False
        mode = _mode(cfg.mode)
        # Its lines stay out of ours.
        settings = wandb.Settings(silent=True, init_timeout=PATIENCE)
        address = wandb.setup().settings.base_url  # as its environment variables and files say
        if mode == "online" and not _reachable(address):
            log.warning("Weights & Biases cannot be reached at %s: going on offline", address)
            mode = "offline"
        self.run: Any = wandb.init(
            mode=mode,
            project=cfg.project,
            entity=cfg.entity,
            group=cfg.group,
            name=name,
            dir=str(folder.resolve()),
            config=config,
            id=self.run_id,
            resume="allow",
            settings=settings,
        )
        if mode == "online":
            log.info("Weights & Biases: %s", self.run.url)
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def log(self, values: dict[str, Any], step: int) -> None:
        """Metrics of a step."""
        self._attempt(lambda: self.run.log(values | {"step": step}))

    def picture(self, name: str, path: Path, step: int) -> None:
        """A PNG file."""
        self._attempt(lambda: self.run.log({name: self.wandb.Image(str(path)), "step": step}))

    def summarise(self, values: dict[str, Any]) -> None:
        """What the run came to."""
        self._attempt(lambda: self.run.summary.update(values))

    def finish(self) -> None:
        """Flush."""
        self._attempt(self.run.finish)

    def _attempt(self, call: Callable[[], object]) -> None:
        """Do it; if that fails, say so once and do no more."""
        if self.broken:
            return
        try:
            call()
        except Exception as error:  # of many kinds; none is worth a training run
            self.broken = True
            log.warning("Weights & Biases failed (%s): going on without it; metrics.jsonl holds everything", error)


def _mode(wanted: str) -> Literal["online", "offline"]:
    online = wanted == "online" or (wanted == "auto" and bool(os.environ.get("WANDB_API_KEY")))
    return "online" if online else "offline"


def _reachable(address: str) -> bool:
    """Whether a server answers at all. Asked first, since a failed start of an online run takes its data with it."""
    try:
        urllib.request.urlopen(address, timeout=PATIENCE).close()
    except urllib.error.HTTPError:
        return True  # an answer, if not a friendly one
    except (OSError, ValueError):
        return False
    return True


def build_logger(
    cfg: LoggerConfig, name: str, folder: Path, config: dict[str, Any], run_id: str | None, is_main: bool
) -> Logger:
    """The logger that ``cfg`` names, on the first process; the others log nothing.

    Where Weights & Biases refuses the run (a wrong key, an unknown entity), training goes on without it.
    """
    if not is_main or cfg.name == "none":
        return NullLogger(run_id)
    try:
        return WandbLogger(cfg, name, folder, config, run_id)
    except Exception as error:  # of many kinds; none is worth a training run
        why = reason(error)
        log.warning("Weights & Biases cannot start (%s): going on without it; metrics.jsonl holds everything", why)
        return NullLogger(run_id)
