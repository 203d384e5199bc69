"""What a command needs before it can import torch. What is missing is one line, not a traceback."""

import resource
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from typing import NoReturn

ADDRESSES = 4 * 2**30  # bytes: less cannot even hold the libraries that a command imports
OLDEST_TORCH = (2, 10)  # 2.9 lacks what engine/compiling.py sets


def refuse_unfit_machine() -> None:
    """End the process in one line if it could not import or use torch."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError:  # as in a read-only container
        _fail("no folder for temporary files can be written: set TMPDIR to one that can")
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if 0 <= limit < ADDRESSES:
        _fail(
            f"this shell allows a process {limit / 2**30:.1f} GiB of addresses (ulimit -v), and torch alone needs "
            f"{ADDRESSES / 2**30:.0f}: set ulimit -v unlimited"
        )
    try:
        found = version("torch")
    except PackageNotFoundError:  # the import says it
        return
    if tuple(int(number) for number in found.split(".")[:2]) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        _fail(f"torch {found} is too old, this needs {oldest} or newer: make setup installs the tested version")


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
