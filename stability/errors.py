"""The one exception the stability room raises for a user's mistake."""


class StabilityError(ValueError):
    """An instrument was asked for what it cannot measure; the message is one line that says what to do."""
