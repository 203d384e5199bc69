"""Weights & Biases (``logger=wandb``): log numbers and pictures, offline by default."""

import logging
import math
import os
import secrets
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal

from engine.callbacks.callback import Callback
from engine.callbacks.logger_lines import best_top1, lines_so_far, tagged
from engine.callbacks.wandb_files import cut_rows, files_of, is_offline, is_sent, read_rows
from engine.errors import reason
from engine.options.plain import as_container
from engine.run import Run

log = logging.getLogger(__name__)

PATIENCE = 15.0  # seconds to wait for the server at the start
LONGEST_END = 60.0  # seconds to wait at the end, within the time between SLURM's signal and its time limit
FLUSH = 1.0  # seconds after which the service writes what it holds; SIGKILL loses no more than this


class WandbLogger(Callback):
    """Logs metrics and pictures. A failure never stops the training.

    W&B writes in a process of its own, its service. SIGTERM to a whole job ends the service too: wandb-core, a Go
    program, installs its own handler, whether the signal was ignored or blocked when it started. So the logger compares
    ``metrics.jsonl`` with W&B's files, and logs the lines that are missing: when a run resumes, and at the end of a run
    whose service died.

    Args:
        run: the parts of the run. Its settings contain mode, project, entity and group.
        state: ``id`` of the W&B run to continue, its ``best_top1``, and how often it was started; None for a new run.
    """

    def __init__(self, run: Run, state: dict[str, Any] | None):
        import wandb  # the import takes seconds, and only the first process needs it

        self.wandb: Any = wandb
        self.cfg, self.directory = run.cfg, run.directory
        self.state: dict[str, Any] = {"id": secrets.token_hex(4), "best_top1": None, "starts": 0} | (state or {})
        self.broken = False
        self.held: set[tuple[int, str]] | None = None  # step and kind of the lines that W&B has; None: not yet known
        self.pictures: set[str] = set()  # names of the pictures that W&B has
        self.kept_from: float = 0  # lines before this step are on the server
        self.run: Any = self._begin()
        if not self.run.offline:
            log.info("Weights & Biases: %s", self.run.url)

    def _begin(self) -> Any:
        """Start the service and the W&B run, or continue it."""
        mode = _mode(self.cfg.logger.mode)
        # silent: print nothing between our lines
        settings = self.wandb.Settings(
            silent=True,
            init_timeout=PATIENCE,
            finish_timeout=LONGEST_END,
            finish_timeout_raises=True,
            x_transaction_log_flush_interval=FLUSH,
        )
        address = self.wandb.setup().settings.base_url  # from wandb's environment variables and settings files
        if mode == "online" and not _reachable(address):
            log.warning("Weights & Biases cannot be reached at %s: continuing offline", address)
            mode = "offline"
        try:
            run = self._init(mode, settings)
        except Exception as error:  # whatever it is, an offline run can be sent later
            if mode == "offline":
                raise
            log.warning("Weights & Biases cannot start online (%s): continuing offline", reason(error))
            self.wandb.teardown()
            run = self._init("offline", settings)
        if run.id != self.state["id"]:
            # In a sweep, W&B's agent chooses the id. So this is another run, which has no lines yet.
            self.state |= {"id": run.id, "starts": 0}
        self.state["starts"] += 1
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        return run

    def _init(self, mode: Literal["online", "offline"], settings: Any) -> Any:
        cfg = self.cfg.logger
        return self.wandb.init(
            mode=mode,
            project=cfg.project,
            entity=cfg.entity,
            group=cfg.group,
            name=str(self.cfg.name),
            dir=str(self.directory.path.resolve()),
            config=as_container(self.cfg),
            id=self.state["id"],
            resume="allow",
            settings=settings,
        )

    def on_line(self, line: dict[str, Any]) -> None:
        """Log the numbers of a line."""
        self._attempt(lambda: self._catch_up(line["step"] - 1))
        self._attempt(lambda: self._log(line))

    def on_picture(self, name: str, path: Path, step: int) -> None:
        """Log the picture."""
        self._attempt(lambda: self._log_picture(name, path, step))

    def on_end(self) -> None:
        """Finish the W&B run. If its service died, another one gets the missing lines."""
        self._attempt(self._finish)
        if self.broken:
            with suppress(Exception, SystemExit):  # a dead service cannot be asked to end
                self.wandb.teardown()
            self.broken, self.held, self.pictures = False, None, set()
            self._attempt(self._begin_again)

    def _log(self, line: dict[str, Any]) -> None:
        """Log a line unless W&B has it, and the best accuracy so far."""
        assert self.held is not None
        values, step = tagged(line), line["step"]
        if step >= self.kept_from and self.held.isdisjoint(_identities(step, values)):
            self.run.log(values | {"step": step})
            self.held |= _identities(step, values)
        self.state["best_top1"] = best_top1(self.state["best_top1"], line)
        if line["split"] == "val" and self.state["best_top1"] is not None:
            self.run.summary.update({"best_top1": self.state["best_top1"]})

    def _log_picture(self, name: str, path: Path, step: int) -> None:
        self.run.log({name: self.wandb.Image(str(path)), "step": step})
        self.pictures.add(name)

    def _catch_up(self, step: float = math.inf) -> None:
        """Log the lines and pictures that W&B lacks. The first call does this, others do nothing.

        Args:
            step: offline files first lose the rows after this step, as ``metrics.jsonl`` did when the run resumed.
        """
        if self.held is not None:
            return
        self.held, files = set(), files_of(self.directory.path / "wandb", self.state["id"])
        for path in files:
            if not is_sent(path):
                cut_rows(path, step)
            for _, row in read_rows(path):
                # An online run may have died before it sent its last rows. The server says how many it has.
                if is_offline(path) or self.run.offline or row.get("_step", 0) < self.run.starting_step:
                    self.held |= _identities(row["step"], row)
                    self.pictures |= {tag.removesuffix("/path") for tag in row if tag.endswith("/path")}
        if len(files) < self.state["starts"]:  # `wandb clean` removed files, which the server has
            self.kept_from = min((place for place, _ in self.held), default=step + 1)
        for line in lines_so_far(self.directory):
            self._log(line)
        for name in ("batch", "val_batch"):  # these come once in a run, others again
            path = self.directory.plots / f"{name}.png"
            if name not in self.pictures and path.exists():
                self._log_picture(name, path, 0)

    def _finish(self) -> None:
        """Log what is missing, and wait until the service has written and sent everything and ended.

        A server that fails is not waited for: the service would go on trying, while the GPUs do nothing.
        """
        self._catch_up()
        try:
            self.run.finish()
        except TimeoutError:
            log.warning(
                "Weights & Biases has not taken everything within %.0f seconds: `wandb sync %s` sends the rest",
                LONGEST_END,
                self.run.settings.sync_dir,
            )
        self.wandb.teardown()

    def _begin_again(self) -> None:
        self.run = self._begin()
        self._finish()

    def _attempt(self, call: Callable[[], object]) -> None:
        """Call ``call``. If it fails, warn once and do not use Weights & Biases until the end of the run."""
        if self.broken:
            return
        try:
            call()
        except (Exception, SystemExit) as error:  # whatever it is, it must not end a training run
            self.broken = True
            log.warning(
                "Weights & Biases failed (%s): continuing without it; metrics.jsonl holds everything, and W&B gets "
                "what it lacks at the end of the run, or when the run resumes",
                error,
            )


def _identities(step: int, values: dict[str, Any]) -> set[tuple[int, str]]:
    """Return what identifies a line: its step, and the tag of its epoch, which each kind of line has."""
    return {(step, tag) for tag in values if tag.rpartition("/")[2] == "epoch"}


def _mode(wanted: str) -> Literal["online", "offline"]:
    online = wanted == "online" or (wanted == "auto" and bool(os.environ.get("WANDB_API_KEY")))
    return "online" if online else "offline"


def _reachable(address: str) -> bool:
    """Whether the server answers. This is checked first, because the data are lost if an online run fails to start."""
    try:
        urllib.request.urlopen(address, timeout=PATIENCE).close()
    except urllib.error.HTTPError:
        return True  # an HTTP error is an answer, too
    except (OSError, ValueError, HTTPException):  # the last one: a server of something else
        return False
    return True
