"""How fast the GPUs of this machine exchange gradients."""

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from scripts.machine.timing import seconds_each

PATIENCE = 120  # seconds for the start of the processes and all sums


def bus_bandwidth(count: int, device: str = "cuda", size: int = 2**28) -> float:
    """Sum a tensor over all GPUs, each in a process of its own, as training does with gradients.

    Args:
        count: number of processes.
        device: ``"cuda"``, or ``"cpu"`` for processes on a CPU.
        size: bytes of the tensor.

    Returns:
        The bus bandwidth of NCCL's own tests in bytes per second: what each GPU of a ring sends in that time.

    Raises:
        RuntimeError: if a process fails, or NCCL hangs. The message is one line.
    """
    with TemporaryDirectory() as folder:
        in_processes(_sum, count, device, size, folder, patience=PATIENCE)
        seconds = float(Path(folder, "seconds").read_text(encoding="ascii"))
    return 2 * (count - 1) / count * size / seconds


def in_processes(work: Callable[..., None], count: int, *args: object, patience: float) -> None:
    """Call ``work(rank, count, *args)`` in ``count`` new processes.

    Raises:
        RuntimeError: if a process fails, or they still run after ``patience`` seconds. The message is one line.
    """
    try:
        _finish(mp.spawn(work, (count, *args), count, join=False), patience)
    except (mp.ProcessExitedException, mp.ProcessRaisedException) as error:
        # The lines before the last one are the traceback of the process.
        raise RuntimeError(str(error).strip().splitlines()[-1]) from None


def _finish(processes: mp.ProcessContext, patience: float) -> None:
    """Wait for the processes, and end those that still run after ``patience`` seconds."""
    until = time.monotonic() + patience
    try:
        while not processes.join(timeout=1):
            if time.monotonic() > until:
                raise RuntimeError(f"the processes have not answered one another for {patience:g} s")
    finally:
        for process in processes.processes:
            process.kill()
            process.join()


def join(rank: int, count: int, kind: str, folder: str) -> torch.device:
    """Let this process meet the others in a folder: over NCCL on GPUs, else over gloo. Returns its device."""
    device = torch.device(kind, rank if kind == "cuda" else 0)
    if kind == "cuda":
        torch.cuda.set_device(device)
    backend, own = ("nccl", device) if kind == "cuda" else ("gloo", None)
    dist.init_process_group(backend, f"file://{folder}/meeting", rank=rank, world_size=count, device_id=own)
    return device


def _sum(rank: int, count: int, kind: str, size: int, folder: str) -> None:
    """Sum a tensor over all processes, again and again. The first one writes the seconds that a sum takes."""
    device = join(rank, count, kind, folder)
    values = torch.ones(size // 4, device=device)
    dist.all_reduce(values)
    if not bool((values == count).all()):
        raise RuntimeError("the sum over the GPUs is wrong")
    values.zero_()  # so that further sums stay finite
    each = seconds_each(lambda: dist.all_reduce(values), device)
    if rank == 0:
        Path(folder, "seconds").write_text(str(each), encoding="ascii")
    dist.destroy_process_group()
