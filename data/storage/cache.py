"""The user's cache folder, and whom its content may belong to."""

import os
import pwd
from pathlib import Path

from data.errors import DataError


def cache_dir() -> Path:
    """``$XDG_CACHE_HOME/coldstart``, or ``~/.cache/coldstart``.

    Raises:
        DataError: if there is no home folder, as in a container for a user that it does not know.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        # The XDG specification says to ignore a relative path.
        return (base if base.is_absolute() else Path.home() / ".cache") / "coldstart"
    except RuntimeError as error:
        raise DataError(
            "this user has no home folder, where the cache would be: set HOME or XDG_CACHE_HOME to a folder of your own"
        ) from error


def refuse_others(path: Path, advice: str = "set XDG_CACHE_HOME to a folder of your own") -> None:
    """Refuse a file or folder that another user may have prepared to mislead this run. Root's files are trusted.

    Raises:
        DataError: if the path exists and belongs to another user.
    """
    try:
        owner = path.stat().st_uid
    except OSError:  # it does not exist, or cannot be used either
        return
    if owner not in (0, os.geteuid()):
        raise DataError(f"{path} belongs to another user, {_user(owner)}, and is not trusted: {advice}")


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"number {number}"
