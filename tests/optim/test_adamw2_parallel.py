"""AdamW² with a gradient scaler, and in several processes."""

import os

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing import spawn
from torch.nn.parallel import DistributedDataParallel

from optim import AdamW2, param_groups

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


def train_in_one_process(rank: int, folder: str) -> None:
    """Train on data that differ between processes, and save the weights and the optimizer's state to a file."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=PROCESSES)
    model = network()
    parallel = DistributedDataParallel(model)
    optimizer = AdamW2(param_groups(model), 1e-2, tau=0.01)
    generator = torch.Generator().manual_seed(rank)
    for _ in range(6):
        optimizer.zero_grad()
        parallel(torch.randn(16, 12, generator=generator)).square().mean().backward()
        optimizer.step()
    torch.save((model.state_dict(), optimizer.state_dict()["state"]), os.path.join(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.mark.slow
def test_every_process_takes_the_identical_step(tmp_path):
    spawn(train_in_one_process, (str(tmp_path),), nprocs=PROCESSES)
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES))
    assert all(torch.equal(one[0][name], two[0][name]) for name in one[0])
    for number, kept in one[1].items():
        assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(two[1][number][k])) for k, v in kept.items())
