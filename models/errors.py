"""The exception that models/ raises for a user's mistake."""


class ModelError(ValueError):
    """The requested model cannot be built or loaded. The message is one line that says what to do."""
