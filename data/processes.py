"""What all processes that ``data/`` starts have in common."""

import multiprocessing
import os
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
