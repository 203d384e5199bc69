"""The processes of a run and the communication between them."""

import os
import re
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from engine.errors import RunStopped, UserError, reason
from engine.processes.lockstep import Lockstep, PeerFailed
from engine.processes.roll_call import RollCall

T = TypeVar("T")

# How long processes wait for each other until the first step is done, and while the first process works alone.
START, ALONE = timedelta(minutes=30), timedelta(minutes=10)
# As torch reports an error of NCCL: where, which, and in later lines what it means and what NCCL logged last.
NCCL_ERROR = re.compile(
    r"NCCL error in: [^\n]*:\d+, ([^\n(]*[^\n( ])[^\n]*(?:\nnccl[^\n]*)?(?:\nLast error:\s*([^\n]+))?"
)


def words_of_nccl(error: BaseException) -> str | None:
    """Return what NCCL says in an error of torch, in one line; None if the error has another cause."""
    found = NCCL_ERROR.search(str(error))
    return ", ".join(filter(None, found.groups())) if found else None


@dataclass
class World:
    """The rank of this process and the number of processes.

    ``rank`` and ``size`` count the processes of all machines, ``local_rank`` and ``local_size`` those of this machine.
    ``roll_call`` and ``lockstep`` exist while several processes are joined.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    roll_call: RollCall | None = field(default=None, compare=False)
    lockstep: Lockstep | None = field(default=None, compare=False)

    @classmethod
    def from_environment(cls) -> "World":
        """Read the variables that torchrun sets. Without them the world is a single process.

        Raises:
            UserError: if these variables contradict each other, or some of them are missing.
        """

        def number(name: str, alone: int) -> int:
            return int(os.environ.get(name, alone))

        world = cls(number("RANK", 0), number("WORLD_SIZE", 1), number("LOCAL_RANK", 0), number("LOCAL_WORLD_SIZE", 1))
        meets = world.size == 1 or {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
        if not (0 <= world.rank < world.size and 0 <= world.local_rank < world.local_size <= world.size and meets):
            raise UserError(
                "the environment has only some of the variables of several processes (RANK, WORLD_SIZE …): "
                "start with torchrun, or unset them"
            )
        return world

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and the log."""
        return self.rank == 0

    @contextmanager
    def joined(self, device: torch.device, directory: Path | None = None) -> Iterator[None]:
        """Join the process group while the context is active. A single process has nothing to join.

        Processes wait for each other for up to 30 minutes, until :meth:`first_works_alone` sets another time.

        Args:
            device: the device of this process.
            directory: where NCCL's flight recorder writes after a failure; None: torch's default.

        Raises:
            RunStopped: if the processes cannot meet, or another one is missing.
        """
        if self.size == 1:
            yield
            return
        if directory is not None and "TORCH_NCCL_DEBUG_INFO_TEMP_FILE" not in os.environ:
            os.environ.setdefault("TORCH_FR_DUMP_TEMP_FILE", str(directory.resolve() / "nccl_trace_rank_"))
        backend, device_id = ("nccl", device) if device.type == "cuda" else ("gloo", None)
        try:
            dist.init_process_group(backend, timeout=START, device_id=device_id)
            self.roll_call = RollCall()  # the first exchange: NCCL connects the processes only now
            self.lockstep = Lockstep(self.roll_call, START.total_seconds())
        except RuntimeError as error:  # a DistError is one, too
            why = words_of_nccl(error) or reason(error)
            raise RunStopped(
                f"the processes cannot meet ({why}): docs/clusters.md says what messages mean", 1
            ) from error
        if backend == "nccl":
            self.roll_call.watch(device)
        try:
            yield
        except Exception as error:
            if lost := self.lost(error):
                raise lost from error
            raise
        self.roll_call.end()
        # Skipped after an error: destroying the group would wait for processes that may hang in a collective.
        dist.destroy_process_group()

    def lost(self, error: Exception) -> RunStopped | None:
        """Return the error to raise instead if ``error`` means that another process is missing; otherwise None.

        If it is not known which one, this takes seconds, in which all processes that still run must call it.
        """
        if isinstance(error, PeerFailed):
            return RunStopped(str(error), 1)
        # gloo raises a plain RuntimeError.
        is_lost = isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
        if self.roll_call is None or not is_lost:
            return None
        words = words_of_nccl(error)  # the cause may be here, such as too little shared memory
        return RunStopped(self.roll_call.lost() + (f"; NCCL says: {words}" if words else ""), 1)

    @contextmanager
    def first_works_alone(self, then_timeout: float) -> Iterator[None]:
        """Let the first process work alone (log, draw, save) for up to 10 minutes. The others wait at the end for it.

        If a process is lost meanwhile, the others may notice it only after these 10 minutes.

        Args:
            then_timeout: how long processes wait for each other from then on, in seconds.
        """
        if self.size == 1:
            yield
            return
        group = dist.group.WORLD
        assert group is not None
        group.set_timeout(ALONE)  # dist.set_timeout does the same, from torch 2.14 on
        yield
        self.barrier()
        group.set_timeout(timedelta(seconds=then_timeout))
        if self.lockstep is not None:
            self.lockstep.timeout = then_timeout

    def in_step(self, items: Iterator[T], look: Callable[[], object]) -> Generator[T, None, None]:
        """Yield the items, each of which comes when all processes have theirs; see :meth:`Lockstep.in_step`."""
        return (item for item in items) if self.lockstep is None else self.lockstep.in_step(items, look)

    def leave(self) -> None:
        """After an error in :meth:`in_step`, wait until the first process has saved and called this, too."""
        if self.lockstep is not None:
            self.lockstep.leave()

    def first_on_machine(self, work: Callable[[], object], is_done: Callable[[], bool]) -> None:
        """Run ``work`` on the first process of each machine. The others on that machine wait until ``is_done``.

        This does not use the process group, so its time-out does not limit the work.
        """
        if self.local_rank == 0:
            work()
            return
        parent = os.getppid()
        while not is_done():
            if os.getppid() != parent:  # the parent is dead, and perhaps the first process too
                sys.exit("error: the process that started this one has exited: run the same command again")
            time.sleep(0.5)

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()

    def any(self, answer: bool, device: torch.device) -> bool:
        """Whether ``answer`` is true on any process. This waits for the device."""
        if self.size == 1:
            return answer
        answers = torch.tensor(float(answer), device=device)
        dist.all_reduce(answers, dist.ReduceOp.MAX)
        return bool(answers.item())

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def sum_all(self, tensors: list[Tensor]) -> None:
        """Sum tensors of one type over all processes, in place and in one exchange."""
        if self.size > 1:
            whole = torch.cat([tensor.flatten() for tensor in tensors])
            dist.all_reduce(whole)
            parts = whole.split([tensor.numel() for tensor in tensors])
            torch._foreach_copy_(tensors, [part.view_as(t) for part, t in zip(parts, tensors, strict=True)])

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Copy the first process's tensors to all others, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def all_gather(self, row: Tensor) -> Tensor:
        """Return the rows of all processes, ``(processes, numbers)``, on the host. This waits for the device."""
        rows = [row]
        if self.size > 1:
            rows = [torch.empty_like(row) for _ in range(self.size)]
            dist.all_gather(rows, row)
        return torch.stack(rows).cpu()
