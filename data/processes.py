"""What the processes that the data room starts have in common."""

import multiprocessing
import os
import threading
from multiprocessing.connection import wait


def end_with_parent() -> None:
    """End this process as soon as the one that started it has ended, however that ended.

    A process whose parent was killed would otherwise wait for work for ever. The parent holds the other end of a pipe,
    which the kernel closes for it. To be called in the child.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
