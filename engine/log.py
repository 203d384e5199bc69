"""What a run says: on the console and in its log file."""

import io
import logging
import sys
from pathlib import Path

from tqdm import tqdm


class AboveBar(logging.Handler):
    """Prints to the console, above a progress bar where one is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)


def log_to(path: Path | None, speaks: bool) -> None:
    """Send the project's messages to the console and, on the first process, to a file.

    Args:
        path: the file, appended to; None for none.
        speaks: whether this process says more than errors.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # what the terminal cannot show is spelt, as stderr does it
        sys.stdout.reconfigure(errors="backslashreplace")
    console = AboveBar()
    console.setLevel(logging.INFO if speaks else logging.ERROR)
    console.setFormatter(logging.Formatter("%(message)s"))
    handlers: list[logging.Handler] = [console]
    if path is not None and speaks:
        file = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        handlers.append(file)
    for room in ("engine", "data", "models", "optim", "stability"):
        logger = logging.getLogger(room)
        logger.handlers = handlers
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
