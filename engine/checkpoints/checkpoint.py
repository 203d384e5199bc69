"""The checkpoints of a run, saved and found so that no crash, full disk or damaged file loses the run."""

import logging
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from engine.checkpoints.checkpoint_file import FORMAT, VALIDATION, checksum, load_checkpoint
from engine.checkpoints.snapshot import snapshot
from engine.errors import UserError, reason

log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of a run: ``last.pt``, ``best.pt`` and older ones named ``step_<n>.pt``.

    A thread writes each file while the training goes on. It writes under a temporary name, syncs the file to the disk
    and then renames it. So every checkpoint is complete.

    A checkpoint is saved before its validation. What the validation adds is small and goes into ``last.validation``,
    so that the checkpoint need not be written again. If this file is lost, a resume validates again.

    Args:
        folder: the folder of the checkpoints.
        keep: number of older checkpoints to keep beside ``last.pt``.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder = folder
        self.keep = keep
        self.last = folder / "last.pt"
        self.best = folder / "best.pt"
        self.validation = folder / VALIDATION
        self.scratch = folder / ".saving.tmp"
        self.last_step: int | None = None  # step of last.pt, if it is a readable checkpoint
        self.writer = ThreadPoolExecutor(1, "checkpoint")
        self.writing: Future[None] | None = None  # the save that was begun last

    # --- saving: only the first process ---------------------------------------------------------------------------

    def save(self, state: dict[str, Any], is_best: bool) -> None:
        """Copy a state, and begin to write it as ``last.pt``. The previous one is renamed to ``step_<n>.pt``.

        If the save before is not finished, this waits for it.

        Args:
            state: what to save; ``state["step"]`` is the number of its step.
            is_best: whether to save it as ``best.pt`` as well.

        Raises:
            UserError: if the save before failed.
        """
        self.wait()
        self.writing = self.writer.submit(self._save, snapshot(state), is_best)

    def wait(self) -> None:
        """Wait until the save that was begun last is finished.

        Raises:
            UserError: if it failed. The earlier checkpoints stay complete.
        """
        if self.writing is not None:
            self.writing.result()

    def raise_if_failed(self) -> None:
        """As :meth:`wait`, but do not wait."""
        if self.writing is not None and self.writing.done():
            self.writing.result()

    def is_last(self, step: int) -> bool:
        """Whether ``last.pt`` is the checkpoint of this step. Waits, and may raise, as :meth:`wait`."""
        self.wait()
        return self.last_step == step and self.last.exists()

    def add_validation(self, found: dict[str, Any], is_best: bool) -> None:
        """Save what a validation of ``last.pt`` has changed in its state.

        Args:
            found: the entries of the state that are new.
            is_best: whether ``last.pt`` becomes ``best.pt`` as well.

        Raises:
            UserError: if it cannot be written.
        """
        self._carry_out(self.last_step, lambda: self._put_validation(found, is_best))

    def _put_validation(self, found: dict[str, Any], is_best: bool) -> None:
        if is_best:  # first: without last.validation a resume validates again, and finds that it is the best
            self._mark_best()
        self._write({"of": checksum(self.last)} | found)
        os.replace(self.scratch, self.validation)
        _sync_folder(self.folder)

    def _save(self, state: dict[str, Any], is_best: bool) -> None:
        self._carry_out(state["step"], lambda: self._put(state, is_best))
        self._prune()

    def _put(self, state: dict[str, Any], is_best: bool) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write({"format": FORMAT} | state)
        if self.last_step is not None and self.last_step != state["step"]:
            os.replace(self.last, self._of_step(self.last_step))
        self.validation.unlink(missing_ok=True)
        os.replace(self.scratch, self.last)
        self.last_step = state["step"]
        if is_best:
            self._mark_best()
        _sync_folder(self.folder)

    def _carry_out(self, step: int | None, write: Callable[[], None]) -> None:
        """Write files. If that fails, begin anew once: a network's disk may have failed for a moment.

        Raises:
            UserError: if it fails again.
        """
        try:
            try:
                write()
            except (OSError, RuntimeError):
                if not self.last.exists():  # it has its older name already, or someone has deleted the folder
                    self.last_step = None
                write()
        except (OSError, RuntimeError) as error:
            with suppress(OSError):  # this fails, too, if the disk is read-only
                self.scratch.unlink()
            raise UserError(
                f"the checkpoint of step {step} could not be saved in {self.folder} ({reason(error)}): "
                "free space and run the same command again to continue from the last good checkpoint"
            ) from error

    def _write(self, content: dict[str, Any]) -> None:
        """Write a file under its temporary name, and sync it to the disk."""
        # After a kill, or because a rename of a file to its own hard link does nothing, this may be a link to last.pt.
        self.scratch.unlink(missing_ok=True)
        with open(self.scratch, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())

    def _of_step(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}.pt"

    def _mark_best(self) -> None:
        _link(self.last, self.scratch)
        os.replace(self.scratch, self.best)

    def _prune(self) -> None:
        for path in self._older()[self.keep :]:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:  # the new checkpoint is complete, so the run goes on
                log.warning("%s is no longer needed but cannot be deleted (%s)", path, error.strerror)

    # --- the files ------------------------------------------------------------------------------------------------

    def set_aside(self, before: int, place: Path) -> int | None:
        """Also keep the newest checkpoint from before step ``before`` at ``place``.

        Returns:
            The step of this checkpoint, or None if there is none.

        Raises:
            UserError: if the save that was begun last failed.
        """
        self.wait()
        files = {int(path.stem.removeprefix("step_")): path for path in self._older()}
        if self.last_step is not None:
            files[self.last_step] = self.last
        step = max((step for step in files if step < before), default=None)
        if step is not None:
            _link(files[step], place)
        return step

    def _older(self) -> list[Path]:
        """Return the ``step_<n>.pt`` files, the newest first."""
        files = sorted(self.folder.glob("step_*.pt"), reverse=True)
        return [path for path in files if path.stem.removeprefix("step_").isdecimal()]  # leave out the user's copies

    def load_last(self) -> dict[str, Any] | None:
        """Load the newest checkpoint that can be read; None if there are no checkpoints.

        Raises:
            UserError: if there are checkpoints but none can be read, or one that is newer than all readable ones cannot
                be opened. That one may be sound, and the next save would replace it.
        """
        has_any = False
        for path in (self.last, *self._older(), self.best):
            if not _can_open(path):
                continue
            has_any = True
            try:
                state = load_checkpoint(path)
                self.last_step = state["step"] if path == self.last else None
                return state
            except UserError as error:
                log.warning("%s; trying the previous one", error)
        if has_any:
            raise UserError(
                f"none of the checkpoints in {self.folder} can be read: set another name=… to start a new run"
            )
        return None

    def rewind(self, path: Path) -> None:
        """Make the file ``step_<n>.pt`` the new ``last.pt``, and delete the ``step_*.pt`` files after it.

        The previous ``last.pt`` is kept as ``before_rewind.pt``.
        """
        if self.last.exists():
            os.replace(self.last, self.folder / "before_rewind.pt")
        for newer in (older for older in self._older() if older.name > path.name):
            newer.unlink()
        os.replace(path, self.last)


def _can_open(path: Path) -> bool:
    """Whether there is a file.

    Raises:
        UserError: if there is one but the system does not open it, such as one of another user.
    """
    try:
        path.open("rb").close()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UserError(
            f"{path} cannot be opened ({error.strerror}): allow reading and run the same command again, or move the "
            "file away to continue from an earlier checkpoint"
        ) from error
    return True


def _link(source: Path, target: Path) -> None:
    """Give the file a second name by a hard link, which needs no disk space."""
    target.unlink(missing_ok=True)  # a kill may have left it, and it may be a link to the source already
    try:
        os.link(source, target)
    except OSError:  # the file system has no hard links
        shutil.copyfile(source, target)


def _sync_folder(folder: Path) -> None:
    """Write the renames in a folder to the disk, so that a power failure does not undo them."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
