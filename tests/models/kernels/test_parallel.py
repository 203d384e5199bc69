"""Kernels in several processes: each computes a part of the batch, and together they get the gradients of one process.

On a GPU the network is also compiled, as in a run, also with CUDA graphs.
"""

from pathlib import Path

import pytest
import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import models  # noqa: F401  (registers the models)
from models.kernels.choice import set_kernels

STEPS = 4  # torch records its CUDA graphs in the second or third
SMALL = {"depths": (1,), "embed_dim": 8, "num_heads": (1,), "img_size": 28, "num_classes": 3}


def new_model(kernels: str) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("lipsformer_swin_tiny", **SMALL).train()
    set_kernels(model, kernels)
    return model


def gradients(rank: int, processes: int, device: str, mode: str | None, images: Tensor) -> list[Tensor]:
    """The gradients that a process has after the exchange. ``mode``: how the network is compiled; None: not at all."""
    model = new_model("triton").to(device)
    network = DistributedDataParallel(model, device_ids=[rank] if device == "cuda" else None)
    mine = images.chunk(processes)[rank].to(device)
    called = network if mode is None else torch.compile(network, mode=mode)
    for _ in range(STEPS if mode == "reduce-overhead" else 1):
        model.zero_grad()
        called(mine).square().mean().backward()
    return [parameter.grad.cpu() for parameter in model.parameters()]


def work(rank: int, processes: int, device: str, mode: str | None, folder: Path) -> None:
    if device == "cuda":
        torch.cuda.set_device(rank)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("nccl" if device == "cuda" else "gloo", meeting, rank=rank, world_size=processes)
    found = gradients(rank, processes, device, mode, torch.load(folder / "images.pt"))
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("device", "processes", "mode"),
    [
        pytest.param("cpu", 2, None, marks=pytest.mark.slow),
        *(pytest.param("cuda", 1, mode, marks=pytest.mark.gpu) for mode in (None, "default", "reduce-overhead")),
        *(pytest.param("cuda", 2, mode, marks=pytest.mark.gpu(2)) for mode in (None, "default")),
    ],
)
def test_processes_get_the_gradients_of_one(device: str, processes: int, mode: str | None, tmp_path: Path):
    images = torch.randn(2, 3, 28, 28)
    torch.save(images, tmp_path / "images.pt")
    model = new_model("torch")
    model(images).square().mean().backward()
    mp.spawn(work, (processes, device, mode, tmp_path), nprocs=processes)
    tolerance = 1e-4 if device == "cpu" else 1e-2  # a GPU computes products in TF32
    for rank in range(processes):
        for found, parameter in zip(torch.load(tmp_path / f"{rank}.pt"), model.parameters(), strict=True):
            limit = tolerance * float(parameter.grad.abs().max())
            torch.testing.assert_close(found, parameter.grad, rtol=tolerance, atol=limit)
