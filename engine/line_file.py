"""A text file that grows by lines while a run trains, such as ``metrics.jsonl``. If it fails, the run continues."""

import os
from contextlib import suppress
from pathlib import Path

from engine.warn_on_failure import warn_on_failure


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
