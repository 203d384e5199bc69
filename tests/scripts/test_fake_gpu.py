"""Counting on fake tensors: the operations are those of a GPU, and their costs are right."""

import math
from unittest.mock import patch

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import models  # noqa: F401
from models.kernels import set_kernels
from scripts.bench.fake_gpu import Cost, CostCounter, as_on_a_gpu, mask_of_kernel

SMALL = {
    "img_size": 56,
    "embed_dim": 32,
    "depths": (1, 1),
    "num_heads": (1, 2),
    "num_classes": 3,
    "drop_path_rate": 0.2,
}


def costs(counter: CostCounter) -> dict[str, tuple[int, int]]:
    found: dict[str, Cost] = {}
    for operation in counter.operations:
        total = found.setdefault(operation.name, Cost())
        total += operation.cost
    return {name: (cost.launches, cost.bytes) for name, cost in found.items()}


def on_fake_cuda(model: nn.Module) -> CostCounter:
    """The forward pass on fake CUDA tensors, under CUDA's autocast, which torch itself refuses without a GPU."""

    def attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None):
        aten, half = torch.ops.aten, torch.bfloat16
        q, k, v = q.to(half), k.to(half), v.to(half)
        if attn_mask is None:
            return aten._scaled_dot_product_flash_attention(q, k, v, dropout_p, is_causal, scale=scale)[0]
        mask = mask_of_kernel(attn_mask.to(half), q)
        return aten._scaled_dot_product_efficient_attention(q, k, v, mask, True, dropout_p, is_causal, scale=scale)[0]

    counter = CostCounter(model, ())
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.autocast_increment_nesting()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), patch.object(F, "scaled_dot_product_attention", attention):
            model.to_empty(device="cuda")
            images = torch.empty(2, 3, 56, 56, device="cuda")
            with counter:
                model(images)
    finally:
        torch.autocast_decrement_nesting()
        torch.set_autocast_enabled("cuda", False)
    return counter


def as_the_script_does(model: nn.Module) -> CostCounter:
    counter = CostCounter(model, ())
    with as_on_a_gpu(model):
        images = torch.empty(2, 3, 56, 56)
        with counter, torch.autocast("cpu", torch.bfloat16):
            model(images)
    return counter


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lipsformer_swin_tiny", SMALL),
        ("swin_tiny_patch4_window7_224", SMALL),
        ("cswin_tiny", SMALL | {"stripes": (1, 7), "num_heads": (2, 4)}),
        ("deit_tiny_patch16_224", {"img_size": 56, "patch_size": 14, "depth": 1, "drop_path_rate": 0.2}),
    ],
)
def test_operations_and_bytes_are_those_of_fake_cuda_tensors(name: str, options: dict) -> None:
    """In the forward pass, the only one that torch can run on fake CUDA tensors without a GPU."""
    first, second = (timm.create_model(name, **options).train() for _ in range(2))
    for model in (first, second):
        set_kernels(model, "torch")
    expected, found = costs(on_fake_cuda(first)), costs(as_the_script_does(second))
    renamed = {"rms_norm": "_fused_rms_norm"}  # a stand-in for torch's fused kernel
    assert {renamed.get(key, key): value for key, value in found.items()} == expected


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
