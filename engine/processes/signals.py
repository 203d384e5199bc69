"""Handle signals that ask a run to stop. The run then finishes its step, saves and says how to continue."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
PATIENCE = 5.0  # seconds after a signal until the run gives up waiting for data
# One Ctrl-C may arrive twice, from the terminal and from torchrun: SIGINTs within so many seconds count as one.
ONE_CTRL_C = 1.0


class WaitGivenUp(Exception):
    """The process was asked to stop and gave up waiting for data."""


def die_of_ctrl_c() -> None:
    """Let Ctrl-C end the process at once and without a traceback, until :func:`raise_on_ctrl_c`.

    This is for the seconds in which a command imports its modules.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def raise_on_ctrl_c() -> None:
    """Let Ctrl-C raise ``KeyboardInterrupt``, as usual in Python."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _tell(line: str) -> None:
    """Print a line to the console, once on each machine."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        with suppress(OSError):
            os.write(2, f"{line}\n".encode())


class StopRequest:
    """Records SIGTERM, SIGINT, SIGUSR1 and SIGHUP instead of ending the process. A second SIGINT ends it at once.

    A closed terminal sends SIGHUP. If ``nohup`` has set it to be ignored, it stays ignored.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.since = 0.0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Record signals while the context is active.

        Enter it after joining the process group: a process that hangs while joining must still react to signals.
        """
        numbers = [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
        before = [(number, signal.signal(number, self._note)) for number in numbers]
        try:
            yield
        finally:
            for number, handler in before:
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _note(self, number: int, frame: FrameType | None) -> None:
        # A handler runs between any two operations of the program. So it writes directly, and raises nothing.
        if self.signal is not None and number == signal.SIGINT and time.monotonic() - self.since > ONE_CTRL_C:
            _tell("error: interrupted")
            os._exit(128 + signal.SIGINT)
        if self.signal is None:
            self.signal, self.since = number, time.monotonic()
            if number == signal.SIGINT:
                _tell("stopping: the run saves after this step or validation; Ctrl-C again ends it now, without saving")

    def look(self) -> None:
        """Called while the run waits for data, which may never arrive.

        Raises:
            WaitGivenUp: if the process was asked to stop more than ``PATIENCE`` seconds ago.
        """
        if self.signal is not None and time.monotonic() - self.since > PATIENCE:
            raise WaitGivenUp("it was asked to stop, and its images do not come")

    def __bool__(self) -> bool:
        return self.signal is not None
