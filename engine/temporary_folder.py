"""Refuse to start without a folder for temporary files. The import of torch would fail with a traceback."""

import sys
import tempfile


def refuse_no_temporary_folder() -> None:
    """End the process in one line if no folder for temporary files can be written, as in a read-only container."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        print("error: no folder for temporary files can be written: set TMPDIR to one that can", file=sys.stderr)
        sys.exit(2)
