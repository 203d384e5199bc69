"""On fake tensors of the CPU, the operations are those of a GPU."""

from unittest.mock import patch

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import models  # noqa: F401
from models.kernels import set_kernels
from scripts.bench.fake_gpu import as_on_a_gpu, mask_of_kernel
from scripts.bench.step_cost import Cost, CostCounter

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
