"""The live line a person watches."""

import logging
import sys
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from engine.callbacks.callback import Callback
from engine.log import discard
from engine.run_length import RunLength
from engine.step import StepOutcome

log = logging.getLogger(__name__)


class Progress(Callback):
    """A bar of optimizer steps on a terminal; where there is none, one line at each reading.

    Args:
        length: of the run, in steps and epochs.
        first: steps done before.
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
        """One step is done."""
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
        # On a terminal the bar says it already; the file gets it in any case.
        level = logging.DEBUG if self.on_terminal else logging.INFO
        log.log(level, "%s  step %d  %s  ETA %s", epoch, step, text, left)

    def on_end(self) -> None:
        """Leave the terminal as it was."""
        self._draw(self.bar.close)

    def _draw(self, draw: Callable[[], object]) -> None:
        """Change what the terminal shows; a terminal that was closed shows no more."""
        try:
            draw()
        except (OSError, ValueError):
            self.bar.disable = True
            discard(sys.stderr)
