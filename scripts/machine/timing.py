"""How long an operation takes. Imports nothing but torch, because processes that start with it should start fast."""

import time
from collections.abc import Callable

import torch

TURNS = 20  # operations in a row, so that the start of one costs nothing


def seconds_each(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds per call: TURNS calls in a row, the best of three series after a warm-up."""
    series = []
    for _ in range(4):
        started = time.perf_counter()
        for _ in range(TURNS):
            work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        series.append(time.perf_counter() - started)
    return min(series[1:]) / TURNS
