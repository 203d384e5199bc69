"""Settings of a process: it ends when its parent ends, and it may open many files."""

import multiprocessing
import os
import resource
import threading
from multiprocessing.connection import wait


def end_with_parent() -> None:
    """End this process as soon as its parent has ended for any reason. Call it in the child process.

    If the parent was killed, the child would otherwise wait for work for ever. The child watches a pipe: the kernel
    closes the parent's end of it when the parent ends.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def allow_many_files() -> None:
    """Raise this process's limit of open files, usually 1024, to its maximum. Processes started later inherit it.

    Every shard is an open file, and so is every batch that a worker sends.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
