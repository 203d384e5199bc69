"""Machines that are processes with namespaces of their own.

When the first process of such a machine ends, the kernel ends all others in it, as on a machine that loses its power.
So nothing is left behind, even if the tests are killed. A bind mount in the namespace gives the machines their names.
The real machine's /etc/hosts stays as it is.
"""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def in_namespaces(hosts: Path, *command: str, also: tuple[str, ...] = ()) -> list[str]:
    """Return the command line that starts a machine. It dies with the process that starts it.

    Args:
        hosts: the file that the machine sees as /etc/hosts.
        command: its first process.
        also: unshare's options for namespaces besides those of processes and mounts.
    """
    unshare = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", *also)
    mount = ("sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(hosts))
    return ["setpriv", "--pdeathsig", "KILL", *unshare, *mount, *command]


def kill(program: str, is_there: Callable[[Path], bool]) -> None:
    """Send SIGKILL to the only process on a machine whose command line contains some words.

    Args:
        program: these words.
        is_there: whether the process of a folder of /proc runs on the machine.
    """
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            if is_there(process) and program in (process / "cmdline").read_text().replace("\0", " "):
                found.append(int(process.name))
    assert len(found) == 1, f"{len(found)} processes have {program} in their command line"
    os.kill(found[0], signal.SIGKILL)
