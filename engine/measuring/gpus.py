"""The peaks of known GPUs."""

import re
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Gpu:
    """What a GPU can do at most.

    Attributes:
        flops: FLOP/s of dense 16-bit tensor-core products.
        bandwidth: bytes per second to and from its memory.
    """

    flops: float
    bandwidth: float


# From NVIDIA's data sheets; those of B200, GB200, GH200, A30, A40, L40, RTX A6000, RTX 6000 Ada and RTX 5090 were not
# compared with them. The keys are regular expressions; the first one that matches the GPU's name counts.
GPUS: dict[str, Gpu] = {
    "GB200": Gpu(2500e12, 8000e9),
    "B200": Gpu(2250e12, 8000e9),
    "GH200 480GB": Gpu(989e12, 4000e9),
    "H200": Gpu(989e12, 4800e9),
    "H100 PCIe": Gpu(756e12, 2000e9),
    "H100": Gpu(989e12, 3350e9),
    "A100.*40GB": Gpu(312e12, 1555e9),
    "A100": Gpu(312e12, 2039e9),
    "A30": Gpu(165e12, 933e9),
    "A40": Gpu(150e12, 696e9),
    "L40S": Gpu(362e12, 864e9),
    "L40": Gpu(181e12, 864e9),
    "L4": Gpu(121e12, 300e9),
    "A10G": Gpu(70e12, 600e9),
    "A10": Gpu(125e12, 600e9),
    "V100": Gpu(125e12, 900e9),
    "T4": Gpu(65e12, 320e9),
    "RTX 6000 Ada": Gpu(364e12, 960e9),
    "RTX A6000": Gpu(155e12, 768e9),
    "RTX 5090": Gpu(210e12, 1792e9),
    "RTX 4090": Gpu(165e12, 1008e9),
    "RTX 3090": Gpu(71e12, 936e9),
}


def known_gpu(name: str) -> Gpu | None:
    """Return the peaks of a GPU by its name in CUDA; None if it is unknown, or a part of a GPU (MIG)."""
    if "MIG" in name:
        return None
    return next((gpu for part, gpu in GPUS.items() if re.search(rf"\b{part}\b", name)), None)


def peak_flops(device: torch.device, amp: str) -> float | None:
    """Return the device's peak FLOP/s in 16 bits; None for fp32, a CPU, or an unknown GPU."""
    if device.type != "cuda" or amp == "fp32":
        return None
    gpu = known_gpu(torch.cuda.get_device_name(device))
    return gpu.flops if gpu else None
