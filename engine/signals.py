"""Being asked to stop: finish the step, save, and say how to go on."""

import signal
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """Notes SIGTERM, SIGINT and SIGUSR1 instead of dying of them; a second SIGINT interrupts at once.

    To be installed after the process group exists: a process stuck in joining it must stay killable.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        for number in SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def __bool__(self) -> bool:
        return self.signal is not None

    def restore(self) -> None:
        """Let the signals do again what they do by default."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
