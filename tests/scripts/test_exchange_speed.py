"""The steps of DDP that are compared with the arithmetic of plan.py; tests of plan.py have the arithmetic."""

import json
from argparse import Namespace
from pathlib import Path

import torch.distributed as dist

from scripts.bench.exchange_speed import take_steps


def test_steps_with_and_without_exchange_are_timed(tmp_path: Path) -> None:
    args = Namespace(model="test_vit", batch_size=2, amp="fp32", steps=1)
    take_steps(0, 1, "cpu", str(tmp_path), args)
    alone, together = json.loads((tmp_path / "seconds").read_text())
    assert alone > 0 and together > 0
    assert not dist.is_initialized()
