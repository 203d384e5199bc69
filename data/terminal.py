"""Escapes control characters in text from outside, such as file names, so that a terminal does not obey them."""

import re

# "\r", for example, would hide what stands before it. Line breaks and tabs stay.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """The text with its control characters written out, such as ``\\x1b``."""
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
