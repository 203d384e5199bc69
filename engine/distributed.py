"""The processes of a run and what they tell each other."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from engine.errors import UserError

TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class World:
    """This process's place among all processes of the run.

    ``rank`` and ``size`` count over all machines, ``local_rank`` and ``local_size`` on this one.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int

    @classmethod
    def from_environment(cls) -> "World":
        """As torchrun says; without it a world of one.

        Raises:
            UserError: if the variables that torchrun sets contradict each other, or some are missing.
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        world = cls(*(int(os.environ.get(name, default)) for name, default in zip(names, "0101", strict=True)))
        meets = world.size == 1 or {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
        if not (0 <= world.rank < world.size and 0 <= world.local_rank < world.local_size <= world.size and meets):
            raise UserError(
                "the environment names only a part of several processes (RANK, WORLD_SIZE, MASTER_ADDR and so on): "
                "start with torchrun, or unset them"
            )
        return world

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    @contextmanager
    def joined(self, device: torch.device) -> Iterator[None]:
        """Join the process group for as long as the context lasts; nothing to do in a world of one."""
        if self.size == 1:
            yield
            return
        backend, device_id = ("nccl", device) if device.type == "cuda" else ("gloo", None)
        dist.init_process_group(backend, timeout=TIMEOUT, device_id=device_id)
        yield
        # Not after an error: the others may be waiting in a collective, and destroying would wait for them.
        dist.destroy_process_group()

    def first_on_machine(self, work: Callable[[], object], is_done: Callable[[], bool]) -> None:
        """Let the first process of each machine do ``work`` while its others wait until ``is_done``.

        Works before the process group exists, so that work of any length meets no time-out.
        """
        if self.local_rank == 0:
            work()
            return
        parent = os.getppid()
        while not is_done():
            if os.getppid() != parent:  # killed, and perhaps the first process with it
                sys.exit("error: the process that started this one is gone: run the same command again")
            time.sleep(0.5)

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()

    def any(self, answer: bool, device: torch.device) -> bool:
        """Whether any process says yes; waits for the device."""
        if self.size == 1:
            return answer
        answers = torch.tensor(float(answer), device=device)
        dist.all_reduce(answers, dist.ReduceOp.MAX)
        return bool(answers.item())

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def share_buffers(self, module: nn.Module) -> None:
        """Give every process the first one's buffers: running statistics of BatchNorm differ between them."""
        if self.size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)

    def gather(self, row: Tensor) -> list[list[float]]:
        """Every process's row of numbers, read on the host: the one place where the host waits for the device."""
        if self.size == 1:
            return [row.tolist()]
        rows = [torch.empty_like(row) for _ in range(self.size)]
        dist.all_gather(rows, row)
        return torch.stack(rows).tolist()


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error says that another process left in the middle of an exchange. Gloo has no kind of its own."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
