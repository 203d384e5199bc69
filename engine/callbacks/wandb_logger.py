"""Weights & Biases (``logger=wandb``): log numbers and pictures, offline by default."""

import logging
import os
import secrets
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from engine.callbacks.callback import Callback, tagged
from engine.run import Run
from engine.settings import as_container

log = logging.getLogger(__name__)

PATIENCE = 15.0  # seconds to wait for the server


class WandbLogger(Callback):
    """Logs metrics and pictures. A failure never stops the training.

    Args:
        run: the parts of the run. Its settings contain mode, project, entity and group.
        state: ``id`` of the W&B run to continue, and its ``best_top1``; None for a new run.
    """

    def __init__(self, run: Run, state: dict[str, Any] | None):
        import wandb  # the import takes seconds, and only the first process needs it

        self.wandb: Any = wandb
        self.state: dict[str, Any] = state or {"id": secrets.token_hex(4), "best_top1": None}
        self.broken = False
        cfg = run.cfg.logger
        mode = _mode(cfg.mode)
        settings = wandb.Settings(silent=True, init_timeout=PATIENCE)  # silent: print nothing between our lines
        address = wandb.setup().settings.base_url  # from wandb's environment variables and settings files
        if mode == "online" and not _reachable(address):
            log.warning("Weights & Biases cannot be reached at %s: continuing offline", address)
            mode = "offline"
        self.run: Any = wandb.init(
            mode=mode,
            project=cfg.project,
            entity=cfg.entity,
            group=cfg.group,
            name=str(run.cfg.name),
            dir=str(run.directory.path.resolve()),
            config=as_container(run.cfg),
            id=self.state["id"],
            resume="allow",
            settings=settings,
        )
        if mode == "online":
            log.info("Weights & Biases: %s", self.run.url)
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def on_line(self, line: dict[str, Any]) -> None:
        """Log the numbers of a line."""
        if values := tagged(line):
            self._attempt(lambda: self.run.log(values | {"step": line["step"]}))
        if line["split"] == "val" and not line.get("not_finite"):
            self.state["best_top1"] = max(line["top1"], self.state["best_top1"] or 0.0)
            self._attempt(lambda: self.run.summary.update({"best_top1": self.state["best_top1"]}))

    def on_picture(self, name: str, path: Path, step: int) -> None:
        """Log the picture."""
        self._attempt(lambda: self.run.log({name: self.wandb.Image(str(path)), "step": step}))

    def on_end(self) -> None:
        """Finish the W&B run."""
        self._attempt(self.run.finish)

    def _attempt(self, call: Callable[[], object]) -> None:
        """Call ``call``. If it fails, warn once and do not use Weights & Biases again."""
        if self.broken:
            return
        try:
            call()
        except Exception as error:  # whatever it is, it must not end a training run
            self.broken = True
            log.warning("Weights & Biases failed (%s): continuing without it; metrics.jsonl holds everything", error)


def _mode(wanted: str) -> Literal["online", "offline"]:
    online = wanted == "online" or (wanted == "auto" and bool(os.environ.get("WANDB_API_KEY")))
    return "online" if online else "offline"


def _reachable(address: str) -> bool:
    """Whether the server answers. This is checked first, because the data are lost if an online run fails to start."""
    try:
        urllib.request.urlopen(address, timeout=PATIENCE).close()
    except urllib.error.HTTPError:
        return True  # an HTTP error is an answer, too
    except (OSError, ValueError):
        return False
    return True
