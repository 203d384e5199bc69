"""Text for a terminal: it must not obey what is in file names, and its encoding may lack letters."""

import io
import re
import sys

# "\r", for example, would hide what stands before it. Line breaks and tabs stay.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """The text with its control characters written out, such as ``\\x1b``."""
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def escape_unknown_letters() -> None:
    """Print escapes such as ``\\u03c4`` for letters that the terminal's encoding lacks, such as τ, ± or –."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
