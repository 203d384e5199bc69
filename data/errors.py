"""What the data room raises for a user's mistake, or for damaged files."""


class DataError(ValueError):
    """The data cannot be used as asked; the message is one line that says what is wrong and what to do."""


class BadImage(DataError):
    """An image cannot be read or decoded.

    Args:
        message: names it.
        row: of the image index; ``None`` where it is not known which image of a batch.
    """

    def __init__(self, message: str, row: int | None = None):
        super().__init__(message)
        self.row = row
