"""Locks on folders: one process at a time changes what is in them."""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)


@contextmanager
def only_one(folder: Path, what: str) -> Iterator[bool]:
    """Wait until no other process is in this context. Yields whether that is certain: without file locks it is not.

    Args:
        folder: it is locked for the processes of this machine, on some file systems for those of others, too.
        what: what a process does there, for the message of another one that waits; such as "copies".
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another run %s to %s: waiting for it", what, folder)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            yield False
            return
        yield True
    finally:
        os.close(descriptor)
