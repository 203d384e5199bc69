"""The one exception the data room raises for a user's mistake."""


class DataError(ValueError):
    """The data cannot be used as asked; the message is one line that says what is wrong and what to do."""
