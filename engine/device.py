"""Choose the device of a process, set it up for speed, and tell its peak performance."""

import ctypes
import os
import re
import resource
from pathlib import Path

import torch

from engine.errors import UserError

# Peak FLOP/s of dense 16-bit tensor-core products, from NVIDIA's data sheets. The first name that matches counts.
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
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # constants of mallopt in glibc's malloc.h
AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def choose_device(wanted: str, local_rank: int) -> torch.device:
    """Return the device of this process.

    Args:
        wanted: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        local_rank: index of the process on this machine.

    Raises:
        UserError: if torch cannot use a GPU that is wanted or visible, or the machine has fewer GPUs than processes.
    """
    if wanted == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        if wanted == "auto" and not _gpu_visible():
            return torch.device("cpu")
        raise UserError(
            "there is a GPU that torch cannot use: update its driver (CUDA 13 needs the 580 series), or set device=cpu"
            if _gpu_visible()
            else "device=cuda, but this machine has no GPU: set device=cpu, or device=auto to use what there is"
        )
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"this machine has {torch.cuda.device_count()} GPUs and more processes than that: "
            f"set --nproc-per-node={torch.cuda.device_count()}"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def _gpu_visible() -> bool:
    """Whether the machine has an NVIDIA GPU, unless ``CUDA_VISIBLE_DEVICES`` hides it."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    return Path("/dev/nvidiactl").exists() or any(Path("/proc/driver/nvidia/gpus").glob("*"))


def check_amp(amp: str, device: torch.device) -> None:
    """Refuse bf16 on a GPU that does not support it.

    Raises:
        UserError: if the device does not support ``amp``.
    """
    if amp == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(f"{torch.cuda.get_device_name(device)} does not support bf16: set amp=fp16 (or amp=fp32)")


def tune(device: torch.device) -> None:
    """Set up the device for speed.

    On a GPU this allows TF32, lets cuDNN choose its kernels by timing them, and leaves attention to torch's own
    kernels. On a CPU it makes glibc keep freed memory for the next step: each page returned to the system costs a page
    fault when it is needed again.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        # On Hopper and Blackwell torch prefers cuDNN's attention, whose backward pass has given NaN for some lengths
        # (https://github.com/pytorch/pytorch/issues/196678). It cannot compute the gradient of a bias, so training and
        # evaluation in windows would use different kernels.
        torch.backends.cuda.enable_cudnn_sdp(False)
    elif hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def peak_flops(device: torch.device, amp: str) -> float | None:
    """Return the device's peak FLOP/s in 16 bits; None for fp32, a CPU, or an unknown GPU."""
    if device.type != "cuda" or amp == "fp32":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if re.search(rf"\b{part}\b", name)), None)


def memory_gb(device: torch.device) -> float:
    """Return the peak memory so far in GiB: GPU memory of this process, or its resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def device_name(device: torch.device) -> str:
    """Return the name of the device for tables and logs."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def default_workers(local_world_size: int) -> int:
    """Return this process's share of the available cores, at least 1."""
    return max(1, len(os.sched_getaffinity(0)) // local_world_size)
