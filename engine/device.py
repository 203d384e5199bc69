"""Choose the device of a process, and set it up for speed."""

import ctypes
import gc
import os
import re
import resource
from pathlib import Path

import torch

from engine.errors import UserError

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
    _refuse_unsupported(device)
    torch.cuda.set_device(device)
    return device


def _refuse_unsupported(device: torch.device) -> None:
    """Raise if the installed torch has no kernels for the GPU: it is too old or too new, and its first step would fail.

    Machine code (``sm_80``) runs on GPUs of the same major and no lower minor capability, an intermediate form
    (``compute_80``) on all later ones.
    """
    names = [re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", name) for name in torch.cuda.get_arch_list()]
    built_for = [(found[1] == "sm", (int(found[2]), int(found[3]))) for found in names if found]
    has = torch.cuda.get_device_capability(device)
    if not built_for or any(each <= has and (each[0] == has[0] or not is_final) for is_final, each in built_for):
        return
    listed = ", ".join(_dotted(each) for each in sorted({each for _, each in built_for}))
    raise UserError(
        f"torch {torch.__version__} has no kernels for {torch.cuda.get_device_name(device)}, of compute capability "
        f"{_dotted(has)}: it has some for {listed}; install a torch for this GPU, or set device=cpu"
    )


def _dotted(capability: tuple[int, int]) -> str:
    return "{}.{}".format(*capability)


def _gpu_visible() -> bool:
    """Whether the machine has an NVIDIA GPU, unless ``CUDA_VISIBLE_DEVICES`` hides it."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    return Path("/dev/nvidiactl").exists() or any(Path("/proc/driver/nvidia/gpus").glob("*"))


def half_precision() -> str:
    """Return the 16-bit precision that suits this machine: fp16 on a GPU without bf16, else bf16."""
    has_bf16 = not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if has_bf16 else "fp16"


def check_amp(amp: str, device: torch.device) -> None:
    """Refuse bf16 on a GPU that does not support it.

    Raises:
        UserError: if the device does not support ``amp``.
    """
    if amp == "bf16" and device.type == "cuda" and half_precision() != "bf16":
        raise UserError(f"{torch.cuda.get_device_name(device)} does not support bf16: set amp=fp16 (or amp=fp32)")


def release_earlier_runs(device: torch.device) -> None:
    """Free what an earlier run in this process has left: the runs of a sweep share one process.

    Otherwise ``micro_batch_size=auto`` would count with less memory in the second run than in the first, and
    :func:`peak_memory_gb` would show the peak of the first. Models are parts of reference cycles, and compiled ones
    stay in the compiler's cache, so neither would go by itself.
    """
    had_run = device.type == "cuda" and torch.cuda.memory_reserved(device) > 0
    if had_run:
        torch.compiler.reset()
    gc.collect()
    if had_run:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


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


def peak_memory_gb(device: torch.device) -> float:
    """Return the peak memory so far in GiB: what torch holds of the GPU, or this process's resident memory on a CPU.

    It includes memory that torch keeps for later. The memory of CUDA graphs counts as allocated only while they are
    recorded.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def device_name(device: torch.device) -> str:
    """Return the name of the device for tables and logs."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def default_workers(local_world_size: int) -> int:
    """Return this process's share of the available cores, at least 1."""
    return max(1, len(os.sched_getaffinity(0)) // local_world_size)
