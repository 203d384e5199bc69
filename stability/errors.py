"""The exception that stability/ raises for a user's mistake."""


class StabilityError(ValueError):
    """An instrument cannot measure what it was given. The message is one line that says what to do."""
