"""Being asked to stop: finish the step, save, and say how to go on."""

import signal
import time
from types import FrameType

from engine.errors import RunStopped

PATIENCE = 5.0  # seconds that a step may wait for its data once a stop is wanted
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """Notes SIGTERM, SIGINT and SIGUSR1 instead of dying of them; a second SIGINT interrupts at once.

    To be installed after the process group exists: a process stuck in joining it must stay killable.
    """

    asked: tuple[float, int] | None = None  # when, and the signal

    def __init__(self) -> None:
        self.signal: int | None = None
        StopRequest.asked = None
        for number in SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
        StopRequest.asked = time.monotonic(), number

    def __bool__(self) -> bool:
        return self.signal is not None

    def restore(self) -> None:
        """Let the signals do again what they do by default."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)


def end_waiting() -> None:
    """Called while a step waits for its data, which may never come: raise where a stop was asked for some time ago.

    Raises:
        RunStopped: where it was.
    """
    if StopRequest.asked is None:
        return
    when, number = StopRequest.asked
    if time.monotonic() - when > PATIENCE:
        raise RunStopped("stopped as asked, while waiting for data: run the same command again to go on", 128 + number)
