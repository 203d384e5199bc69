"""TensorBoard (``logger=tensorboard``): write numbers, pictures and settings to the run's folder ``tensorboard/``."""

from pathlib import Path
from typing import Any

import matplotlib.image
from torch.utils.tensorboard import SummaryWriter

from engine.callbacks.callback import Callback
from engine.callbacks.logger_lines import best_top1, lines_so_far, tagged
from engine.options.plain import as_container, flatten
from engine.run import Run


class TensorBoardLogger(Callback):
    """Writes event files; ``tensorboard --logdir outputs`` shows all runs.

    Args:
        run: the parts of the run.
        state: the ``best_top1`` so far, and the last ``step`` that is written; None if the run never had this logger.
            Each start writes another event file. TensorBoard joins the files, and drops the steps that come again.
    """

    def __init__(self, run: Run, state: dict[str, Any] | None):
        self.cfg, self.directory, self.first = run.cfg, run.directory, run.first
        self.state: dict[str, Any] = {"best_top1": None, "step": 0 if state is None else run.first} | (state or {})
        again = 0 if state is None else self.state["step"] + 1  # the first step that this file writes
        self.writer = SummaryWriter(str(run.directory.path / "tensorboard"), purge_step=again)
        self.is_behind = self.state["step"] < run.first

    def on_line(self, line: dict[str, Any]) -> None:
        """Write the numbers of a line, and before the first one those of steps that were taken without this logger."""
        if self.is_behind:
            self.is_behind, written = False, self.state["step"]
            for earlier in lines_so_far(self.directory):
                if written < earlier["step"] <= self.first:
                    self._write(earlier)
        self._write(line)

    def _write(self, line: dict[str, Any]) -> None:
        for tag, value in tagged(line).items():
            if isinstance(value, int | float) and tag.rpartition("/")[2] != "epoch":
                self.writer.add_scalar(tag, value, line["step"])
        self.state |= {"best_top1": best_top1(self.state["best_top1"], line), "step": line["step"]}

    def on_picture(self, name: str, path: Path, step: int) -> None:
        """Write the picture."""
        self.writer.add_image(name, matplotlib.image.imread(path), step, dataformats="HWC")

    def on_end(self) -> None:
        """Write the settings and the best accuracy for TensorBoard's table of hyperparameters, and close the file."""
        options = flatten(as_container(self.cfg)).items()
        settings = {name: value if isinstance(value, int | float | str) else str(value) for name, value in options}
        best = self.state["best_top1"]
        if best is not None:
            self.writer.add_hparams(settings, {"hparam/best_top1": best}, run_name=".")
        self.writer.close()
