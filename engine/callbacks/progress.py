"""The progress bar on a terminal, and the progress lines in the log."""

import logging
import sys
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from engine.callbacks.callback import Callback
from engine.log import discard
from engine.run import RunLength
from engine.step import StepOutcome

log = logging.getLogger(__name__)


class Progress(Callback):
    """Shows a bar of optimizer steps on a terminal. Without a terminal, it prints one line at each reading.

    Args:
        length: length of the run in steps and epochs.
        first: number of steps done before this start.
    """

    def __init__(self, length: RunLength, first: int):
        self.length, self.first, self.started = length, first, time.monotonic()
        self.on_terminal = sys.stderr.isatty()
        self.bar = tqdm(
            initial=first,
            total=length.stop_at,
            disable=not self.on_terminal,
            dynamic_ncols=True,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {postfix} ETA {remaining}",
        )

    def after_step(self, outcome: StepOutcome) -> None:
        """Advance the bar by one step."""
        self._draw(self.bar.update)

    def on_line(self, line: dict[str, Any]) -> None:
        """Show a line of training metrics."""
        if line["split"] != "train":
            return
        text = (
            f"loss {line['loss']:.4f}  lr {line['lr']:.2e}  {line['images_per_second']:.0f} img/s  "
            f"data {100 * line['data_wait']:.0f}%"
        )
        step, length = line["step"], self.length
        epoch = f"epoch {length.epoch_of(step)}/{length.epochs}"
        self.bar.set_description_str(epoch, refresh=False)
        self._draw(lambda: self.bar.set_postfix_str(text))
        seconds_a_step = (time.monotonic() - self.started) / max(step - self.first, 1)
        left = tqdm.format_interval((length.stop_at - step) * seconds_a_step)
        # On a terminal the bar shows it already. The log file always gets this line.
        level = logging.DEBUG if self.on_terminal else logging.INFO
        log.log(level, "%s  step %d  %s  ETA %s", epoch, step, text, left)

    def on_end(self) -> None:
        """Close the bar."""
        self._draw(self.bar.close)

    def _draw(self, draw: Callable[[], object]) -> None:
        """Update the bar. If the terminal was closed, disable the bar."""
        try:
            draw()
        except (OSError, ValueError):
            self.bar.disable = True
            discard(sys.stderr)
