"""The one exception the models room raises for a user's mistake."""


class ModelError(ValueError):
    """A model was asked for that cannot be built or loaded; the message is one line that says what to do."""
