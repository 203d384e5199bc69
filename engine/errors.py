"""How a run ends early, and whose doing that is."""

from data import DataError
from models import ModelError
from optim import OptimError


class UserError(ValueError):
    """The run cannot go on as asked; the message is one line that says what is wrong and what to do."""


class RunStopped(Exception):
    """The run ended before its time, for a reason that is no mistake in the command.

    Args:
        message: one line that says why, and how to go on.
        exit_code: of the process.
    """

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def reason(error: BaseException) -> str:
    """Why something failed, in one line: as the system says, where another error came after that of the system."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


USER_ERRORS = (UserError, DataError, ModelError, OptimError)
