"""What each GPU has and how fast it is, and how fast the GPUs exchange gradients."""

import ctypes
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, files

import torch

from engine.device import AMP_DTYPES, choose_device, half_precision
from engine.errors import UserError
from engine.measuring.gpus import known_gpu
from scripts.machine.exchange import bus_bandwidth
from scripts.machine.row import Row, verdict
from scripts.machine.timing import seconds_each

SIDE = 8192  # of the matrices that are multiplied; large enough for any GPU to come near its peak
COPIED = 2**30  # bytes
UNITS = {"TFLOP/s": 1e12, "GB/s": 1e9}
ENOUGH, LEAST = 0.6, 0.3  # shares of a peak
GRADIENTS = 5e9  # bytes per second: the gradients of 28 M parameters, 0.1 GB, then take less than 50 ms
HARDWARE, ARCH_MISMATCH = 3, 7  # NVJPEG_BACKEND_HARDWARE and NVJPEG_STATUS_ARCH_MISMATCH in nvjpeg.h


def usable() -> Iterator[Row]:
    """Say whether there is a GPU that torch can use. If there is one, its own rows follow."""
    try:
        device = choose_device("auto", 0)
    except UserError as error:
        yield Row("GPU", "cannot be used", "bad", str(error))
        return
    if device.type == "cpu":
        yield Row("GPU", "none", "warn", "training will be slow; make train takes minutes, ImageNet needs a GPU")


def one(number: int) -> Iterator[Row]:
    """Yield the rows of one GPU."""
    device, label = torch.device("cuda", number), f"GPU {number}"
    torch.cuda.set_device(device)
    name, (free, total) = torch.cuda.get_device_name(device), torch.cuda.mem_get_info(device)
    value = f"{name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    yield Row(label, value, verdict(free / total, 0.9), "another program uses its memory: see nvidia-smi")
    half = half_precision()
    has_bf16 = half == "bf16"
    yield Row(f"{label} bf16", "yes" if has_bf16 else "no", "ok" if has_bf16 else "warn", "train with amp=fp16")
    engines = jpeg_engines()
    said = {None: "not known: nvJPEG does not answer", 0: "no engine of its own; its other cores decode"}
    yield Row(f"{label} JPEG decoder", said.get(engines, f"{engines} hardware engines"))
    flops, bandwidth = (peak.flops, peak.bandwidth) if (peak := known_gpu(name)) else (None, None)
    yield speed(f"{label} {half} products", product_rate(device, AMP_DTYPES[half]), flops, "TFLOP/s")
    yield speed(f"{label} memory copy", copy_rate(device), bandwidth, "GB/s")
    torch.cuda.empty_cache()


def jpeg_engines() -> int | None:
    """Return how many hardware JPEG engines the current GPU has, as nvJPEG tells it; None if it does not."""
    try:
        path = next(file for file in files("nvidia-nvjpeg") or [] if file.name.startswith("libnvjpeg.so"))
        library = ctypes.CDLL(str(path.locate()))
    except (PackageNotFoundError, StopIteration, OSError):
        return None
    handle, engines, cores = ctypes.c_void_p(), ctypes.c_uint(), ctypes.c_uint()
    status = library.nvjpegCreateEx(HARDWARE, None, None, 0, ctypes.byref(handle))
    if status != 0:
        return 0 if status == ARCH_MISMATCH else None
    status = library.nvjpegGetHardwareDecoderInfo(handle, ctypes.byref(engines), ctypes.byref(cores))
    library.nvjpegDestroy(handle)
    return engines.value if status == 0 else None


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return FLOP/s of a product of two large matrices."""
    a, b = (torch.randn(SIDE, SIDE, device=device, dtype=dtype) for _ in range(2))
    return 2 * SIDE**3 / seconds_each(lambda: torch.mm(a, b), device)


def copy_rate(device: torch.device) -> float:
    """Return bytes per second of a copy inside the GPU's memory; each byte is read and written."""
    source = torch.zeros(COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * COPIED / seconds_each(lambda: target.copy_(source), device)


def speed(name: str, rate: float, peak: float | None, unit: str) -> Row:
    """Judge a speed by the peak in the GPU's data sheet. Both are per second; ``unit`` is only for the text."""
    measured = f"{rate / UNITS[unit]:.0f} {unit}"
    if peak is None:
        return Row(name, f"{measured} (the peak of this GPU is not known here)")
    share = rate / peak
    advice = "see nvidia-smi for other processes, heat, and a lowered power limit or clock"
    return Row(name, f"{measured}, {share:.0%} of its peak", verdict(share, ENOUGH, LEAST), advice)


def exchange(count: int) -> Iterator[Row]:
    """Yield the row of the links between the GPUs."""
    try:
        rate = bus_bandwidth(count)
    except RuntimeError as error:
        yield Row("all-reduce", str(error), "bad", "run it again with NCCL_DEBUG=INFO; NCCL_P2P_DISABLE=1 often helps")
        return
    advice = "the links between the GPUs are slow: see nvidia-smi topo -m, and NCCL_DEBUG=INFO for what NCCL uses"
    value = f"{rate / 1e9:.1f} GB/s of bus bandwidth between {count} GPUs"
    yield Row("all-reduce", value, verdict(rate, GRADIENTS, GRADIENTS / 10), advice)
