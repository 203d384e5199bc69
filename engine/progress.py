"""The live line a person watches."""

import logging
import sys
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from engine.log import discard

log = logging.getLogger(__name__)


class Progress:
    """A bar of optimizer steps on a terminal; where there is none, one line at each reading.

    Args:
        first: steps done before.
        total: steps at the end.
        shown: whether this process speaks.
    """

    def __init__(self, first: int, total: int, shown: bool):
        self.on_terminal = shown and sys.stderr.isatty()
        self.bar = tqdm(
            initial=first,
            total=total,
            disable=not self.on_terminal,
            dynamic_ncols=True,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {postfix} ETA {remaining}",
        )

    def advance(self) -> None:
        """One step is done."""
        self._draw(self.bar.update)

    def show(self, epoch: int, epochs: int, line: dict[str, Any], seconds_left: float) -> None:
        """Show a line of training metrics."""
        text = (
            f"loss {line['loss']:.4f}  lr {line['lr']:.2e}  {line['images_per_second']:.0f} img/s  "
            f"data {100 * line['data_wait']:.0f}%"
        )
        self.bar.set_description_str(f"epoch {epoch}/{epochs}", refresh=False)
        self._draw(lambda: self.bar.set_postfix_str(text))
        record = f"epoch {epoch}/{epochs}  step {line['step']}  {text}  ETA {tqdm.format_interval(seconds_left)}"
        # On a terminal the bar says it already; the file gets it in any case.
        log.log(logging.DEBUG if self.on_terminal else logging.INFO, record)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._draw(self.bar.close)

    def _draw(self, draw: Callable[[], object]) -> None:
        """Change what the terminal shows; a terminal that was closed shows no more."""
        try:
            draw()
        except (OSError, ValueError):
            self.bar.disable = True
            discard(sys.stderr)
