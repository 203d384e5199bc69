"""Versions of Python and the packages, and whether driver, torch and DALI fit together."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from data.backends import has_dali
from scripts.machine.row import Row

REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements.txt"
# The oldest series of the driver for each major version of CUDA, from the release notes of the CUDA toolkit.
DRIVERS = {12: 525, 13: 580}


def check() -> Iterator[Row]:
    """Yield the rows of this subject."""
    found = "{}.{}.{}".format(*sys.version_info)
    yield Row("Python", found, "ok" if sys.version_info >= (3, 11) else "bad", "install Python 3.11")
    yield packages(REQUIREMENTS.read_text(encoding="utf-8"))
    cuda = torch.version.cuda
    if cuda is None:
        yield Row("torch", f"{torch.__version__}, for CPUs only", "warn", "for GPUs install it again with make setup")
        return
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_nccl_available() else "missing"
    cudnn = torch.backends.cudnn.version() or 0
    parts = f"CUDA {cuda}, cuDNN {cudnn // 10000}.{cudnn // 100 % 100}.{cudnn % 100}, NCCL {nccl}"
    yield Row("torch", f"{torch.__version__}, {parts}")
    yield driver(driver_version(), cuda, torch.cuda.is_available())
    yield dali(cuda)


def packages(requirements: str) -> Row:
    """Compare the installed packages with the pins in the text of a requirements file."""
    pins = dict(re.findall(r"^([\w.-]+)==([\w.]+)", requirements, re.MULTILINE))
    differ = []
    for name, pinned in pins.items():
        try:
            found = version(name).split("+")[0]  # torch 2.14.1+cu130 is 2.14.1
        except PackageNotFoundError:
            found = "missing"
        if found != pinned:
            differ.append(f"{name} {found} (pinned {pinned})")
    if not differ:
        return Row("packages", f"all {len(pins)} as pinned in requirements.txt")
    return Row("packages", ", ".join(differ), "warn", "only the pinned versions are tested; make setup installs them")


def driver_version() -> str | None:
    """Return the version of the NVIDIA driver, such as ``580.65.06``; None if nvidia-smi does not tell it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    asked = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    answer = subprocess.run(asked, capture_output=True, text=True, timeout=30)
    return answer.stdout.splitlines()[0].strip() if answer.returncode == 0 and answer.stdout else None


def driver(found: str | None, cuda: str, works: bool) -> Row:
    """Judge the driver.

    Args:
        found: its version, if known.
        cuda: the CUDA version that torch is built for.
        works: whether torch can use a GPU. NVIDIA's compatibility package lets it with an older driver, too.
    """
    if found is None:
        value = "works; nvidia-smi does not tell its version" if works else "none found"
        return Row("NVIDIA driver", value, "ok" if works else "missing", "only a machine with a GPU needs it")
    needed = DRIVERS.get(int(cuda.split(".")[0]), 0)
    fits = works or int(found.split(".")[0]) >= needed
    return Row("NVIDIA driver", found, "ok" if fits else "bad", f"update it: CUDA {cuda} needs the {needed} series")


def dali(cuda: str) -> Row:
    """Judge DALI by the CUDA version that torch is built for."""
    if not has_dali():
        return Row("DALI", "not installed", "missing", "PyTorch decodes instead, more slowly; make setup installs it")
    import nvidia.dali

    major = int(nvidia.dali.__cuda_version__) // 1000
    fits = major == int(cuda.split(".")[0])
    found = f"{nvidia.dali.__version__} for CUDA {major}"
    return Row("DALI", found, "ok" if fits else "warn", f"torch is for CUDA {cuda}: make setup installs what fits")
