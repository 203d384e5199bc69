"""Being asked to stop: finish the step, save, and say how to go on."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
PATIENCE = 5.0  # seconds from a signal until waiting for data is given up


class WaitGivenUp(Exception):
    """The process was asked to stop while it waited for data that did not come."""


class StopRequest:
    """Notes SIGTERM, SIGINT, SIGUSR1 and SIGHUP instead of dying of them; a second SIGINT interrupts at once.

    SIGHUP, which a closed terminal sends, stays ignored where ``nohup`` has it ignored.
    To be installed after the process group exists: a process stuck in joining it must stay killable.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.is_waiting = False
        self.before: dict[int, Any] = {}
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self.before[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal is None:
            self.before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._give_up)
            signal.setitimer(signal.ITIMER_REAL, PATIENCE, 1.0)  # and then every second
        self.signal = number

    def _give_up(self, number: int, frame: FrameType | None) -> None:
        if self.is_waiting:
            self.is_waiting = False
            raise WaitGivenUp

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around work that may wait without end, and that may be given up once the process is to stop.

        Raises:
            WaitGivenUp: at any place of that work, a few seconds after the signal.
        """
        self.is_waiting = True
        try:
            yield
        finally:
            self.is_waiting = False

    def __bool__(self) -> bool:
        return self.signal is not None

    def restore(self) -> None:
        """Let the signals do again what they did before."""
        if signal.SIGALRM in self.before:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self.before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
