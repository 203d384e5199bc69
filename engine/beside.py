"""What a run does beside its training: metrics, pictures, instruments. It may fail, and the run goes on."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from engine.errors import reason

log = logging.getLogger(__name__)

_said: set[str] = set()


@contextmanager
def beside(what: str) -> Iterator[None]:
    """Work that must not end a run: if it fails, a warning says so, once for each ``what``.

    Args:
        what: what then failed, as the beginning of a sentence: "outputs/a/plots/curves.png cannot be drawn".
    """
    try:
        yield
    except Exception as error:  # of many kinds; none is worth a training run
        if what not in _said:
            _said.add(what)
            log.warning("%s (%s): the run goes on without it", what, reason(error))


class LineFile:
    """A text file that grows by lines, beside the training. Lines that cannot be written wait for the next attempt.

    Args:
        path: the file. It and its folder are made where they are missing.
    """

    def __init__(self, path: Path):
        self.path = path
        self.waiting: list[str] = []

    def add(self, line: str) -> None:
        """Write a line, and those that wait; all of them or none."""
        self.waiting.append(line)
        with beside(f"{self.path} cannot be written"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            size = self.path.stat().st_size if self.path.exists() else 0
            try:
                with open(self.path, "a", encoding="utf-8") as file:
                    file.write("".join(f"{text}\n" for text in self.waiting))
            except OSError:
                with suppress(OSError):
                    os.truncate(self.path, size)  # a full disk may have taken a part
                raise
            self.waiting.clear()
