"""How queries and keys are compared."""

import pytest
import torch
import torch.nn.functional as F

from models.lipsformer_parts import UNIT_EPSILON
from models.similarity import unit_rows
from tests.models.test_attention import SIMILARITIES


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_have_unit_length_as_those_of_normalize(dtype: torch.dtype):
    x = torch.randn(5, 7, 32, dtype=dtype).mul(torch.logspace(-2, 2, 7, dtype=dtype)[:, None]).requires_grad_()
    results = []
    for normalised in (unit_rows(x, UNIT_EPSILON), F.normalize(x, dim=-1)):
        (gradient,) = torch.autograd.grad(normalised.cos().sum(), x)
        results.append((normalised, gradient))
    torch.testing.assert_close(
        *results, rtol=1e-4 if dtype == torch.float32 else 1e-10, atol=1e-4 if dtype == torch.float32 else 1e-12
    )


def test_a_row_of_zeros_stays_zero():
    assert not unit_rows(torch.zeros(2, 32), UNIT_EPSILON).any()


def test_autocast_makes_no_wider_copy_and_sums_are_exact():
    x = torch.randn(100, 32, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        rows = unit_rows(x, UNIT_EPSILON)
    assert rows.dtype == torch.bfloat16
    torch.testing.assert_close(rows.float(), F.normalize(x.float(), dim=-1), rtol=2**-7, atol=0)


def test_certified_vectors_are_shorter_than_one_and_smooth_at_zero():
    q, k, v = (torch.randn(2, 3, 4, dtype=torch.float64) * scale for scale in (0, 1e3, 0.1))
    for before, after in zip((q, k, v), SIMILARITIES["certified"].prepare(q, k, v), strict=True):
        assert after.isfinite().all() and (after.norm(dim=-1) < 1).all()
        torch.testing.assert_close(after * (before.square().sum(-1, keepdim=True) + 0.1).sqrt(), before)


@pytest.mark.parametrize("name", SIMILARITIES)
def test_bf16_stays_bf16(name):
    q, k, v = SIMILARITIES[name].prepare(*torch.randn(3, 2, 4, 8, dtype=torch.bfloat16).unbind(0))
    assert {q.dtype, k.dtype, v.dtype} == {torch.bfloat16}
