"""Being asked to stop: finish the step, save, and say how to go on."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
PATIENCE = 5.0  # seconds from a signal until waiting for data is given up


class WaitGivenUp(Exception):
    """The process was asked to stop while it waited for data that did not come."""


class StopRequest:
    """Notes SIGTERM, SIGINT, SIGUSR1 and SIGHUP instead of dying of them; a second SIGINT interrupts at once.

    SIGHUP, which a closed terminal sends, stays ignored where ``nohup`` has it ignored.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.since = 0.0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note signals for as long as the context lasts.

        To be entered after the process group exists: a process stuck in joining it must stay killable.
        """
        numbers = [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
        before = [(number, signal.signal(number, self._note)) for number in numbers]
        try:
            yield
        finally:
            for number, handler in before:
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal is None:
            self.signal, self.since = number, time.monotonic()

    def look(self) -> None:
        """Called while data are waited for, which may never come.

        Raises:
            WaitGivenUp: if the process was asked to stop some time ago.
        """
        if self.signal is not None and time.monotonic() - self.since > PATIENCE:
            raise WaitGivenUp

    def __bool__(self) -> bool:
        return self.signal is not None
