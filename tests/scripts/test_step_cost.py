"""The costs of operations."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from scripts.bench.step_cost import Cost, CostCounter


def counted(function, *tensors: Tensor) -> Cost:
    counter, total = CostCounter(nn.Identity(), ()), Cost()
    with FakeTensorMode(allow_non_fake_inputs=True), counter:
        function(*tensors)
    for operation in counter.operations:
        total += operation.cost
    return total


def test_bytes_are_read_and_written_once() -> None:
    x = torch.zeros(10, 20)
    assert counted(lambda x: x + x[:1].expand(10, 20), x) == Cost(1, 4 * (200 + 20 + 200), 0)
    assert counted(lambda x: x.add_(1), x) == Cost(1, 4 * (200 + 200), 0)
    assert counted(lambda x: x.zero_(), x) == Cost(1, 4 * 200, 0)
    assert counted(lambda x: x.view(20, 10).t()[2:], x) == Cost(0, 0, 0)


def test_flops_are_those_of_the_textbook() -> None:
    a, b = torch.zeros(4, 5), torch.zeros(5, 6)
    assert counted(torch.mm, a, b).flops == 2 * 4 * 5 * 6
    maps, weight = torch.zeros(2, 8, 5, 5), torch.zeros(8, 1, 3, 3, requires_grad=True)
    forward = 2 * maps.numel() * 9

    def both_passes(maps: Tensor, weight: Tensor) -> None:
        F.conv2d(maps, weight, padding=1, groups=8).sum().backward()

    assert counted(both_passes, maps, weight).flops == 2 * forward  # no gradient of the maps
    assert counted(both_passes, maps.requires_grad_(), weight).flops == 3 * forward


@pytest.mark.parametrize(("tensors", "elements", "launches"), [(3, 10, 1), (200, 10, 2), (2, 30_000_000, 3)])
def test_foreach_kernels_are_launched_for_so_many_tensors_and_blocks(tensors: int, elements: int, launches: int):
    """110 tensors of one list at once, and 320 blocks of 65,536 elements."""
    counter = CostCounter(nn.Identity(), ())
    with FakeTensorMode():
        values = [torch.empty(elements) for _ in range(tensors)]
        with counter:
            torch._foreach_mul_(values, 2)
    assert counter.operations[0].cost.launches == launches
    assert launches >= math.ceil(tensors / 110)
