"""The one exception the optim room raises for a user's mistake."""


class OptimError(ValueError):
    """An optimizer or schedule was asked for that cannot be built; the message is one line that says what to do."""
