"""The exception for a user's mistake in the options of an optimizer or schedule."""


class OptimError(ValueError):
    """The optimizer or schedule cannot be built from its options. The message is one line that says what to do."""
