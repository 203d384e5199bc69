"""Name the processes that are missing when the processes of a run can no longer exchange data."""

import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from threading import Event, Thread
from typing import cast

import torch
import torch.distributed as dist

PATIENCE = 5.0  # seconds between the first and the last process that notices that one is missing


class RollCall:
    """A call to all processes of a run, which those answer that still run. Create it on all of them at the same time.

    When a process is missing, the others wait for it in the same exchange, and all of them give up at about the same
    time. Then each one answers here. The answers go through the store where the processes first met, because the
    process group no longer works.
    """

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        names: list[tuple[str, int]] = [("", 0)] * self.size
        dist.all_gather_object(names, (socket.gethostname(), os.getpid()))
        self.hosts = [host for host, _ in names]
        self.key = f"roll_call/{names[0]}"  # torchrun's store keeps the answers of earlier attempts, under other keys
        self.over = Event()
        self.watcher: Thread | None = None

    def lost(self) -> str:
        """Return one line that names the missing processes and says what to do. It takes up to ``PATIENCE`` seconds."""
        self.over.set()
        answers: set[int] = set()
        ask_store(lambda: self._call(answers), PATIENCE)
        if missing := set(range(self.size)) - answers:
            who = named(missing, self.rank, self.hosts)
            cause = f"no answer from {who}: it has exited and says why, or it hangs, or its network is cut"
        else:
            hosts = ", ".join(dict.fromkeys(self.hosts))
            cause = f"all processes run (on {hosts}), but one of them came late, or the network failed for a while"
        again = "run the same command again to continue from the last checkpoint"
        return f"{cause}; {again} (a higher ddp_timeout waits longer)"

    def _call(self, answers: set[int]) -> None:
        store = first_store()
        store.set(f"{self.key}/{self.rank}", "here")
        while len(answers) < self.size:
            answers |= {rank for rank in range(self.size) if store.check([f"{self.key}/{rank}"])}
            time.sleep(0.1)

    def watch(self, device: torch.device) -> None:
        """End this process with the line of :meth:`lost` when NCCL has failed.

        No exception tells of it: the main thread waits for a GPU that never finishes. A minute later, NCCL's own thread
        would abort the process without naming anybody.
        """
        backend = cast(dist.ProcessGroup, dist.group.WORLD)._get_backend(device)

        def look() -> None:
            while backend.get_error().name == "SUCCESS":
                if self.over.wait(1):
                    return
            print(f"error: {self.lost()}", file=sys.stderr, flush=True)
            time.sleep(PATIENCE)  # time for NCCL's flight recorder to write its file
            os._exit(1)

        self.watcher = Thread(target=look, daemon=True)
        self.watcher.start()

    def end(self) -> None:
        """Stop watching, before the process group is destroyed.

        The watching thread refers to NCCL's part of the group. If it were the last to do so, it would destroy that part
        while Python exits, which can abort the process.
        """
        self.over.set()
        if self.watcher is not None:
            self.watcher.join()


def first_store() -> dist.TCPStore:
    """Return another connection to the store where the processes first met."""
    return dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)


def ask_store(call: Callable[[], object], patience: float) -> None:
    """Call a store without an error, and give up after ``patience`` seconds.

    A store on a machine that is gone may never reply, and a thread may be using its connection.
    """

    def attempt() -> None:
        with suppress(dist.DistError):
            call()

    caller = Thread(target=attempt, daemon=True)
    caller.start()
    caller.join(patience)


def named(missing: set[int], caller: int, hosts: list[str]) -> str:
    """Return missing ranks and their hosts in words.

    Args:
        missing: the ranks that did not answer ``caller``.
        caller: the rank of this process. If it is missing itself, the store could not be reached.
        hosts: the host of each rank.
    """
    if caller in missing:
        return f"rank 0 on {hosts[0]} or the store of the processes on {os.environ['MASTER_ADDR']}"
    ranks: dict[str, list[str]] = {}
    for rank in sorted(missing):
        ranks.setdefault(hosts[rank], []).append(str(rank))
    return "; ".join(f"rank {', '.join(numbers)} on {host}" for host, numbers in ranks.items())
