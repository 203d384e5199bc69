"""Which device a process runs on, and what that device can do."""

import ctypes
import os
import re
from pathlib import Path

import torch

from engine.errors import UserError

# Dense peak of tensor cores at 16 bits, FLOP/s, from NVIDIA's data sheets; the first name that fits counts.
PEAK_FLOPS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
    "V100": 125e12,
    "T4": 65e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h
AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def choose_device(wanted: str, local_rank: int) -> torch.device:
    """The device of this process.

    Args:
        wanted: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        local_rank: place among the processes of this machine.

    Raises:
        UserError: if a GPU is wanted or visible and cannot be used.
    """
    if wanted == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        if wanted == "auto" and not _gpu_visible():
            return torch.device("cpu")
        raise UserError(
            "there is a GPU that torch cannot use: update its driver (CUDA 13 needs the 580 series), or set device=cpu"
            if _gpu_visible()
            else "device=cuda, but this machine has no GPU: set device=cpu, or device=auto to take what there is"
        )
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"there are {torch.cuda.device_count()} GPUs for more processes on this machine: "
            f"set --nproc-per-node={torch.cuda.device_count()}"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def _gpu_visible() -> bool:
    """Whether the machine has an NVIDIA GPU that was not hidden on purpose."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    return Path("/dev/nvidiactl").exists() or any(Path("/proc/driver/nvidia/gpus").glob("*"))


def check_amp(amp: str, device: torch.device) -> None:
    """Raise where the device cannot compute in the wanted precision."""
    if amp == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(f"{torch.cuda.get_device_name(device)} has no bf16: set amp=fp16 (or amp=fp32)")


def tune(device: torch.device) -> None:
    """Make the device fast at no cost in accuracy.

    On a GPU: TF32 products, and kernels chosen by trial. On a CPU: freed memory is kept for the next step, because
    every page that glibc hands back to the system costs a fault when it is wanted again.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    elif hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def peak_flops(device: torch.device, amp: str) -> float | None:
    """The device's peak in FLOP/s, where known: for 16 bits only."""
    if device.type != "cuda" or amp == "fp32":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if re.search(rf"\b{part}\b", name)), None)


def device_name(device: torch.device) -> str:
    """What to call the device in a table."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def default_workers(local_world_size: int) -> int:
    """A process's share of the cores it may run on."""
    return max(1, len(os.sched_getaffinity(0)) // local_world_size)
