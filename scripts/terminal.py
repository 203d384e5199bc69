"""The terminal in which a script prints."""

import io
import sys


def escape_unknown_letters() -> None:
    """Print escapes such as ``\\u03c4`` for letters that the terminal's encoding lacks, such as τ, ± or –."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
