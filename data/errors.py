"""The errors that ``data/`` raises for a user's mistake or for damaged files."""


class DataError(ValueError):
    """The data cannot be used as requested. The message is one line: what is wrong and what to do."""


class BadImage(DataError):
    """An image cannot be read or decoded.

    Args:
        message: names the image.
        row: its row in the image index; ``None`` if it is not known which image of a batch is bad.
    """

    def __init__(self, message: str, row: int | None = None):
        super().__init__(message)
        self.row = row


def in_one_line(error: BaseException) -> str:
    """Why something failed: the system's words if the error has them, else its own."""
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
