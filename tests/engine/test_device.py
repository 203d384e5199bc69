"""The peaks of known GPUs."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from engine.device import choose_device, default_workers, peak_memory_gb
from engine.errors import UserError
from engine.measuring.gpus import GPUS, known_gpu, peak_flops


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA GB200", "GB200"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA GH200 480GB", "GH200 480GB"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100 80GB PCIe", "A100"),
        ("NVIDIA A100-SXM4-40GB", "A100.*40GB"),
        ("NVIDIA A100-PCIE-40GB", "A100.*40GB"),
        ("NVIDIA A30", "A30"),
        ("NVIDIA A40", "A40"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L40", "L40"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA A10", "A10"),
        ("Tesla V100-SXM2-16GB", "V100"),
        ("Tesla T4", "T4"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("NVIDIA RTX A6000", "RTX A6000"),
        ("NVIDIA GeForce RTX 5090", "RTX 5090"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 3090", "RTX 3090"),
    ],
)
def test_a_gpu_is_known_by_its_name_in_cuda(name: str, key: str) -> None:
    assert known_gpu(name) is GPUS[key]


@pytest.mark.parametrize(
    "name", ["NVIDIA B300", "NVIDIA GH200 144G HBM3e", "NVIDIA A1000", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"]
)
def test_other_gpus_and_parts_of_a_gpu_are_unknown(name: str) -> None:
    assert known_gpu(name) is None


def test_peaks_are_in_flops_and_bytes_per_second() -> None:
    assert all(1e13 < gpu.flops < 1e16 and 1e11 < gpu.bandwidth < 1e13 for gpu in GPUS.values())


def test_memory_of_a_cpu_is_that_of_the_process() -> None:
    (peak,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    assert peak_memory_gb(torch.device("cpu")) == pytest.approx(int(peak.split()[1]) / 2**20, rel=0.1)


def test_workers_are_a_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(12)))
    assert [default_workers(processes) for processes in (1, 4, 5, 24)] == [12, 3, 2, 1]


def test_only_16_bit_on_a_known_gpu_has_a_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-40GB")
    assert peak_flops(torch.device("cuda"), "bf16") == 312e12
    assert peak_flops(torch.device("cuda"), "fp32") is None
    assert peak_flops(torch.device("cpu"), "bf16") is None


@pytest.mark.parametrize(
    ("built_for", "capability", "refused"),
    [
        (["sm_90", "sm_75"], (7, 0), True),
        (["sm_90", "sm_75"], (7, 5), False),
        (["sm_80", "sm_86"], (8, 9), False),  # the same major capability
        (["sm_75", "sm_86"], (8, 0), True),
        (["sm_80", "sm_90"], (10, 0), True),
        (["sm_80", "sm_90", "compute_90"], (10, 0), False),  # the driver compiles it
        (["sm_80", "compute_120"], (10, 0), True),
        (["sm_90a", "sm_100f"], (10, 3), False),
        (["gfx942"], (9, 4), False),
    ],
)
def test_a_gpu_for_which_torch_has_no_kernels_is_refused(
    built_for: list[str], capability: tuple[int, int], refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ("is_available", True),
        ("device_count", 1),
        ("get_arch_list", built_for),
        ("get_device_capability", capability),
        ("get_device_name", "NVIDIA X"),
        ("set_device", False),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    has = "{}.{}".format(*capability)
    with (
        pytest.raises(
            UserError, match=rf"^torch \S+ has no kernels for NVIDIA X, of compute capability {has}: it has some"
        )
        if refused
        else nullcontext()
    ):
        assert choose_device("auto", 0) == torch.device("cuda", 0)
