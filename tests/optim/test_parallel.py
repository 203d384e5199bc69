"""All optimizers in several processes, and AdamW² with a gradient scaler."""

import os

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing import spawn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from optim import AdamW2, OptimConfig, build_optimizer, param_groups
from optim.build import OPTIMIZERS

PROCESSES = 2


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 24), nn.GELU(), nn.Linear(24, 5))


def test_a_gradient_scaler_changes_nothing_and_its_skipped_steps_change_nothing():
    plain, scaled = network(), network()
    optimizers = [AdamW2(param_groups(model), 1e-2, tau=0.01) for model in (plain, scaled)]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    for step in range(8):
        x, y = torch.randn(16, 12), torch.randint(5, (16,))
        overflows = step == 4
        if not overflows:
            optimizers[0].zero_grad()
            nn.functional.cross_entropy(plain(x), y).backward()
            optimizers[0].step()
        optimizers[1].zero_grad()
        loss = nn.functional.cross_entropy(scaled(x), y) * (torch.inf if overflows else 1)
        scaler.scale(loss).backward()
        scaler.step(optimizers[1])
        scaler.update()
    # Scales are powers of two, so scaling loses no precision.
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), scaled.parameters(), strict=True))
    assert optimizers[0].metrics() == optimizers[1].metrics()
    assert optimizers[0].metrics()["capped"] > 0


CHOICES = [OptimConfig(name=name, lr=1e-3, tau=0.01) for name in OPTIMIZERS]
CHOICES += [OptimConfig(name=name, lr=1e-3, weight_cap=0.5) for name in ("adamw2", "muon")]


def images_of(rank: int) -> torch.Tensor:
    """What a process trains on: other numbers in each."""
    return torch.randn(20, 16, 12, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)


def steps(cfg: OptimConfig, model: nn.Module, forward: nn.Module, batches: torch.Tensor) -> Optimizer:
    optimizer = build_optimizer(cfg, model, 32)
    for batch in batches:
        optimizer.zero_grad()
        forward(batch).square().mean().backward()
        optimizer.step()
    return optimizer


def train_in_one_process(rank: int, folder: str) -> None:
    """Train with every optimizer, and save the weights and the optimizer's state to a file."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=PROCESSES)
    found = []
    for cfg in CHOICES:
        model = network().double()
        optimizer = steps(cfg, model, DistributedDataParallel(model), images_of(rank))
        found.append((model.state_dict(), optimizer.state_dict()["state"]))
    torch.save(found, os.path.join(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The weights and states of each process, for each of ``CHOICES``."""
    folder = tmp_path_factory.mktemp("parallel")
    spawn(train_in_one_process, (str(folder),), nprocs=PROCESSES)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(CHOICES)), ids=lambda n: f"{CHOICES[n].name}, cap {CHOICES[n].weight_cap}")
def test_two_processes_take_the_same_twenty_steps_as_one(number, trained):
    """Bit for bit the same in both, and to rounding those of one process with the images of both."""
    one, two = (found[number] for found in trained)
    assert all(torch.equal(one[0][name], two[0][name]) for name in one[0])
    for kept, twin in zip(one[1].values(), two[1].values(), strict=True):
        assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(twin[k])) for k, v in kept.items())
    model = network().double()
    before = model(torch.cat([images_of(0), images_of(1)], dim=1)).square().mean()
    steps(CHOICES[number], model, model, torch.cat([images_of(0), images_of(1)], dim=1))
    for name, value in model.state_dict().items():
        assert torch.allclose(value, one[0][name], rtol=1e-6, atol=1e-9), name
    assert model(torch.cat([images_of(0), images_of(1)], dim=1)).square().mean() < before
