"""Work beside the training, such as metrics, pictures and instruments. If it fails, the run continues."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from engine.errors import reason

log = logging.getLogger(__name__)

_said: set[str] = set()


@contextmanager
def warn_on_failure(what: str, then: str = "the run continues without it") -> Iterator[None]:
    """Turn an exception into a warning, so that it does not end the run. Each ``what`` warns once.

    Args:
        what: describes the failure and begins the warning, such as "outputs/a/plots/curves.png cannot be drawn".
        then: what happens next, which ends the warning.
    """
    try:
        yield
    except Exception as error:  # whatever it is, it must not end a training run
        if what not in _said:
            _said.add(what)
            file = getattr(error, "filename", None)
            place = f"{file}: " if file is not None and str(file) not in what else ""
            log.warning("%s (%s%s): %s", what, place, reason(error), then)


class LineFile:
    """A text file that the run appends lines to. Lines that could not be written are kept for the next attempt.

    Args:
        path: the file. If it or its folder is missing, it is created.
    """

    def __init__(self, path: Path):
        self.path = path
        self.waiting: list[str] = []

    def add(self, line: str) -> None:
        """Write this line and the lines kept from failed attempts: either all of them or none."""
        self.waiting.append(line)
        with warn_on_failure(f"{self.path} cannot be written"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            size = self.path.stat().st_size if self.path.exists() else 0
            try:
                with open(self.path, "a", encoding="utf-8") as file:
                    file.write("".join(f"{text}\n" for text in self.waiting))
            except OSError:
                with suppress(OSError):
                    os.truncate(self.path, size)  # a part may have been written before the disk was full
                raise
            self.waiting.clear()
