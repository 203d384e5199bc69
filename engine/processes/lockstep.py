"""Keep the processes of a run in step: none begins a micro-batch before all of them have theirs."""

import itertools
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from functools import partial
from typing import TypeVar

import torch.distributed as dist

from data import attentive
from engine.errors import reason
from engine.processes.roll_call import PATIENCE, RollCall, ask_store, first_store

T = TypeVar("T")

UNTIL_SAVED = 60.0  # seconds that other processes stay for the first one's save
LONGEST_SLEEP = 0.05  # seconds from one check of the store to the next, at most
ALL = "all"
MISSING = "missing"  # this answer: a process has waited long enough for another one
_runs = itertools.count()  # the runs of a sweep share a process and a store


class PeerFailed(Exception):
    """Another process cannot go on. The message is one line."""


class Lockstep:
    """Tells all processes before a step that one of them cannot take it.

    With NCCL, a process does not notice by itself: its GPU waits for gradients that never come, and it can no longer
    save the steps before. So the processes meet on the host before each micro-batch, when the GPU still computes the
    one before. A process that fails says so there, and stays until the first process has saved.

    The processes meet in the store where they first met. It needs no other connection between machines.

    Args:
        roll_call: knows the processes. It no longer watches NCCL once a process has failed, because the others leave.
        timeout: seconds that processes wait for each other.
    """

    def __init__(self, roll_call: RollCall, timeout: float):
        self.roll_call, self.timeout = roll_call, timeout
        self.store = first_store()
        self.key = f"{roll_call.key}/run/{next(_runs)}"
        self.turn = 0
        self.waits_since = 0.0
        self.all_stop = False  # whether a failure is known to all processes

    def in_step(self, items: Iterator[T], look: Callable[[], object]) -> Generator[T, None, None]:
        """Yield each item when all processes have theirs.

        Args:
            items: every process has equally many.
            look: called every second while this process waits for others; may raise to stop the waiting.

        Raises:
            PeerFailed: if another process cannot get its item.
            DistError: if another process does not come in time.
        """
        # The store may be on a machine that is gone and never reply: only a second thread can be given up.
        with closing(attentive(self._meetings(), partial(self._look, look))) as answers:
            while True:
                with self._telling_others():
                    item = next(items, None)
                    if item is None:
                        return
                    self.waits_since = time.monotonic()
                    self._refuse_failure(next(answers))
                yield item

    def _look(self, look: Callable[[], object]) -> None:
        look()
        if time.monotonic() - self.waits_since > self.timeout:
            self._refuse_failure(MISSING)

    def _refuse_failure(self, answer: str) -> None:
        """Raise unless this answer says that all come to the next step."""
        if answer == MISSING:  # the roll call says which one, if all others give up, too
            raise dist.DistStoreError("another process does not come to the next step")
        if answer != ALL:
            rank, _, why = answer.partition(" ")
            raise PeerFailed(f"rank {rank} on {self.roll_call.hosts[int(rank)]} cannot go on: {why}")

    @contextmanager
    def _telling_others(self) -> Iterator[None]:
        """If an error occurs in this context, the other processes learn of it."""
        answer = self._answer(self.turn + 1)
        try:
            yield
        except Exception as error:
            self.all_stop = not isinstance(error, dist.DistError)
            self.roll_call.over.set()
            said = f"{self.roll_call.rank} {reason(error)}" if self.all_stop else MISSING
            ask_store(lambda: self.store.compare_set(answer, "", said), PATIENCE)  # unless there is an answer already
            raise

    def _meetings(self) -> Generator[str, None, None]:
        """At each request, come to the next turn and wait for its answer: ``ALL``, or the rank that failed and why."""
        while True:
            self.turn += 1
            answer, began = self._answer(self.turn), time.monotonic()
            if self.store.add(self._place(self.turn), 1) == self.roll_call.size:  # this is the last process
                self.store.compare_set(answer, "", ALL)  # one that came earlier may have failed since
                self.store.delete_key(self._place(self.turn - 1))  # all have left it
                self.store.delete_key(self._answer(self.turn - 1))
            # Look often at first, then rarely. A wait inside the store would keep its connection from other threads.
            while not self.store.check([answer]):
                time.sleep(min((time.monotonic() - began) / 10, LONGEST_SLEEP))
            yield self.store.get(answer).decode()

    def _place(self, turn: int) -> str:
        return f"{self.key}/turn/{turn}"

    def _answer(self, turn: int) -> str:
        return f"{self._place(turn)}/answer"

    def leave(self) -> None:
        """After a failure, wait until the first process has saved. That one calls this when it has."""
        saved = f"{self.key}/saved"
        if self.roll_call.rank == 0:
            ask_store(lambda: self.store.set(saved, ""), PATIENCE)
        elif self.all_stop:
            ask_store(lambda: self.store.wait([saved], timedelta(seconds=UNTIL_SAVED)), UNTIL_SAVED)
