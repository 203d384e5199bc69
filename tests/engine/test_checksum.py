"""The number by which processes see that they start from the same weights."""

from collections.abc import Callable

import torch

from engine.training_run import checksum


def test_it_does_not_depend_on_the_order_of_a_sum(set_threads: Callable[[int], None]) -> None:
    """As with other numbers of threads, and on other GPUs: processes on two kinds of machines train together."""
    weights = [torch.randn(400, 500).exp().square(), torch.randn(7)]
    found = set()
    for threads in (1, 2, 3, 5):
        set_threads(threads)
        found |= {checksum(weights), checksum(weight.flip(0) for weight in weights)}
    assert len(found) == 1


def test_another_weight_or_sign_changes_it() -> None:
    weights = [torch.randn(40, 50), torch.ones(()), torch.randn(30, 20).T, torch.randn(8, dtype=torch.float16)]
    numbers = [checksum([*weights[:i], -weights[i], *weights[i + 1 :]]) for i in range(len(weights))]
    weights[0][3, 4] = torch.nextafter(weights[0][3, 4], torch.tensor(9.0))
    assert len({*numbers, checksum(weights), checksum(weights[::2])}) == len(weights) + 2
    assert checksum(weights) == checksum(weight.clone() for weight in weights)
