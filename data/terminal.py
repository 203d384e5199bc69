"""Text from outside, such as the names of files, in a form that a terminal only shows."""

import re

# A terminal would obey these, and "\r" hides what stands before it. Line breaks and tabs stay.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """The text with its control characters written out, such as ``\\x1b``."""
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
