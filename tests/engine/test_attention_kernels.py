"""Which attention kernels a GPU uses, and whether they compute what they should."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from engine.device import tune
from tests.runs import in_a_fork


def only_cudnn_is_switched_off() -> None:
    settings = torch.backends.cuda
    settings.enable_cudnn_sdp(True)  # as torch starts
    tune(torch.device("cpu"))
    assert settings.cudnn_sdp_enabled()
    tune(torch.device("cuda"))
    assert not settings.cudnn_sdp_enabled()
    assert settings.flash_sdp_enabled() and settings.mem_efficient_sdp_enabled()


def test_a_gpu_gets_torch_s_attention_and_not_cudnn_s() -> None:
    """The flags exist without a GPU, too. They are set in a process of its own, because they hold for all tests."""
    assert in_a_fork(only_cudnn_is_switched_off) == 0


def in_windows(batch: int, heads: int, tokens: int, width: int) -> Tensor:
    """Queries, keys and values as ``WindowAttention`` lays them out: heads before tokens."""
    return torch.randn(3, batch, heads, tokens, width)


def in_stripes(batch: int, heads: int, tokens: int, width: int) -> Tensor:
    """As ``StripeAttention`` lays them out: tokens before heads."""
    return torch.randn(3, batch, tokens, heads, width).transpose(2, 3)


def in_sequences(batch: int, heads: int, tokens: int, width: int) -> Tensor:
    """As timm's ViT lays them out: slices of one product."""
    return torch.randn(batch, tokens, 3, heads, width).permute(2, 0, 3, 1, 4)


# Layout, tokens, width of a head, and whether there is a bias: all that our models use at 224 pixels.
CASES = {
    "window of 7x7": (in_windows, 49, 32, True),
    "stripe of 56x1": (in_stripes, 56, 32, False),
    "stripe of 28x2": (in_stripes, 56, 32, False),
    "stripe of 14x7": (in_stripes, 98, 32, False),
    "stripe of 7x7": (in_stripes, 49, 32, False),
    "stripe of 14x7, CSwin-B": (in_stripes, 98, 24, False),
    "ViT": (in_sequences, 197, 64, False),
    "ViT without class token": (in_sequences, 196, 64, False),
}
# Rounding to 16 bits, relative to the largest value: a few units in the last place.
TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 3e-3}


def results(
    qkv: Tensor, bias: Tensor | None, upstream: Tensor, learns: bool, kernels: list[SDPBackend]
) -> list[Tensor]:
    """Return the output; if the inputs learn, also their gradients, the bias' included."""
    leaves = [x.detach().requires_grad_(learns) for x in qkv.unbind(0)]
    mask = bias.detach().requires_grad_(learns) if bias is not None else None
    with sdpa_kernel(kernels):
        out = F.scaled_dot_product_attention(*leaves, attn_mask=mask, scale=1 / math.sqrt(qkv.shape[-1]))
    if not learns:
        return [out]
    out.backward(upstream)
    return [out, *(x.grad for x in (*leaves, *([mask] if mask is not None else [])) if x.grad is not None)]


def check_attention(case: str, dtype: torch.dtype, learns: bool, device: str, kernels: list[SDPBackend]) -> None:
    layout, tokens, width, has_bias = CASES[case]
    heads = 3
    qkv = layout(64, heads, tokens, width).to(device, dtype)
    bias = torch.randn(1, heads, tokens, tokens).to(device, dtype) if has_bias else None
    upstream = torch.randn(64, heads, tokens, width).to(device, dtype)
    found = results(qkv, bias, upstream, learns, kernels)
    exact = results(
        qkv.float(), bias.float() if bias is not None else None, upstream.float(), learns, [SDPBackend.MATH]
    )
    assert len(found) == len(exact) == (1 + 3 + has_bias if learns else 1)
    for a, b in zip(found, exact, strict=True):
        assert a.isfinite().all() and (a.float() - b).abs().max() <= TOLERANCE[dtype] * b.abs().max()


@pytest.mark.gpu
@pytest.mark.parametrize("learns", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_fused_attention_computes_what_plain_attention_does(case, dtype, learns):
    """The kernels that ``tune`` leaves; if none of them takes a shape, torch raises an error."""
    if dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU has no bf16")
    check_attention(case, dtype, learns, "cuda", [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION])
