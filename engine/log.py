"""What a run says: on the console and in its log file. Neither is worth a run: one that breaks is done without."""

import io
import logging
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

log = logging.getLogger(__name__)


class Console(logging.Handler):
    """Prints above a progress bar, where one is shown. A reader that is gone, or a full disk, silences it."""

    is_broken = False

    def emit(self, record: logging.LogRecord) -> None:
        if self.is_broken:
            return
        try:
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()  # else an error would show up later, somewhere else
        except (OSError, ValueError) as error:
            self.is_broken = True
            discard(sys.stdout)
            log.warning("the console cannot be written (%s): the run goes on without it", error)


class LogFile(logging.FileHandler):
    """Writes to a file, and says once where that fails."""

    is_broken = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self.is_broken:
            self.is_broken = True
            log.warning("%s cannot be written (%s): the run goes on without it", self.baseFilename, sys.exc_info()[1])


def log_to(path: Path | None, speaks: bool) -> None:
    """Send the project's messages to the console and, on the first process, to a file.

    Args:
        path: the file, appended to; None for none.
        speaks: whether this process says more than errors.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # what the terminal cannot show is spelt, as stderr does it
        sys.stdout.reconfigure(errors="backslashreplace")
    console = Console()
    console.setLevel(logging.INFO if speaks else logging.ERROR)
    console.setFormatter(logging.Formatter("%(message)s"))
    handlers: list[logging.Handler] = [console]
    if path is not None and speaks:
        file = LogFile(path, encoding="utf-8", errors="backslashreplace")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        handlers.append(file)
    for room in ("engine", "data", "models", "optim", "stability"):
        logger = logging.getLogger(room)
        logger.handlers = handlers
        logger.setLevel(logging.DEBUG)
        logger.propagate = False


def discard(stream: TextIO) -> None:
    """Send a stream that cannot be written nowhere. Python writes the rest at its exit, and fails if it cannot."""
    with suppress(OSError, ValueError):  # a stream without a file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def flush_streams() -> None:
    """Write what is still to be written to the console, at the end of a process."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            discard(stream)
