"""Messages of a run on the console and in its log file. If one of these breaks, the run continues without it."""

import logging
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from engine.credentials import masked
from engine.terminal import escape_unknown_letters, printable
from engine.warn_on_failure import warn_on_failure

log = logging.getLogger(__name__)


def safe_text(text: str) -> str:
    """Return a text as people may see it: without secrets, and with control characters written out."""
    return printable(masked(text))


def print_error(message: object) -> None:
    """Print an error as one line, as :func:`safe_text` says. Its names may be those in another person's files."""
    with suppress(OSError, ValueError):  # stderr may be closed; the exit status still reports the error
        print("error:", safe_text(str(message)).replace("\n", "\\x0a"), file=sys.stderr, flush=True)


class Lines(logging.Formatter):
    """Formats messages, and shows them as :func:`safe_text` says."""

    def format(self, record: logging.LogRecord) -> str:
        return safe_text(super().format(record))


class Console(logging.Handler):
    """Prints messages above the progress bar, if there is one. After a failed write, it prints nothing more."""

    is_broken = False

    def emit(self, record: logging.LogRecord) -> None:
        if self.is_broken:
            return
        try:
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()  # report a failure here and not at a later write
        except (OSError, ValueError) as error:
            self.is_broken = True
            discard(sys.stdout)
            log.warning("the console cannot be written (%s): the run continues without it", error)


class LogFile(logging.FileHandler):
    """Writes messages to a file, and warns once if that fails."""

    is_broken = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self.is_broken:
            self.is_broken = True
            log.warning("%s cannot be written (%s): the run continues without it", self.baseFilename, sys.exc_info()[1])


def log_to(path: Path | None, speaks: bool) -> None:
    """Send the project's messages to the console and, on the first process, to a file.

    Args:
        path: the log file, to append to; None for no file.
        speaks: whether this process prints more than errors.
    """
    open_missing_streams()
    escape_unknown_letters()  # as stderr does
    console = Console()
    console.setLevel(logging.INFO if speaks else logging.ERROR)
    console.setFormatter(Lines("%(message)s"))
    handlers: list[logging.Handler] = [console]
    for package in ("engine", "data", "models", "optim", "stability"):
        logger = logging.getLogger(package)
        logger.handlers = handlers
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
    if path is not None and speaks:
        with warn_on_failure(f"{path} cannot be written"):
            file = LogFile(path, encoding="utf-8", errors="backslashreplace")
            file.setFormatter(Lines("%(asctime)s %(levelname)s %(message)s"))
            handlers.append(file)  # of all these loggers


def log_from(package: str) -> None:
    """Send the messages of another package, such as that of a user's callback, where the project's messages go."""
    logger, own = logging.getLogger(package), logging.getLogger("engine")
    logger.handlers = own.handlers
    logger.setLevel(own.level)
    logger.propagate = own.propagate


def open_missing_streams() -> None:
    """Let stdout and stderr lead nowhere if the process started without them, as some daemons start programs."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  (open until the process ends)


def discard(stream: TextIO) -> None:
    """Redirect a broken stream to ``os.devnull``. Otherwise Python fails at exit, when it flushes the stream."""
    with suppress(OSError, ValueError):  # the stream has no file descriptor
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def flush_streams() -> None:
    """Flush stdout and stderr at the end of a process."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            discard(stream)
