"""``mfu``: the share of the peak of all GPUs that a run reaches."""

from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from torch import nn

from engine.loop import TrainLoop
from engine.measuring.flops import forward_flops, seconds_at_peak
from engine.measuring.meter import Reading
from engine.processes.distributed import World
from engine.processes.signals import StopRequest
from engine.run import RunLength
from engine.runtime import Runtime
from tests.runs import SMALL, settings

CPU = torch.device("cpu")


def test_a_backward_pass_counts_as_two_forward_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.measuring.flops.peak_flops", lambda device, amp: 1e12)
    model = timm.create_model("lipsformer_swin_mini")
    forward = forward_flops(model, 28)
    assert forward > 1e6 and seconds_at_peak(model, 28, CPU, "fp32") == pytest.approx(3 * forward / 1e12)
    assert seconds_at_peak(nn.Linear(7, 3), 28, CPU, "fp32") is None  # takes no images


@pytest.mark.parametrize("processes", [1, 4])
def test_the_images_of_all_processes_are_divided_by_the_gpus(processes: int) -> None:
    lines: list[dict[str, Any]] = []
    run: Any = SimpleNamespace(
        cfg=settings(*SMALL, "data.root=unused"),
        runtime=Runtime(World(0, processes, 0, processes), CPU),
        length=RunLength(1, 10, 10),
        first=0,
        step=SimpleNamespace(metrics=dict),
    )
    callbacks: Any = SimpleNamespace(on_reading=lambda reading: None, on_line=lines.append)
    loop = TrainLoop(run, callbacks, StopRequest(), seconds_at_peak=1e-3)
    loop._report(Reading([], 1.0, 1.0, 2000.0, 0.1, 0.0, None, []))
    assert lines[0]["mfu"] == pytest.approx(2.0 / processes)  # 2000 images in a second, of 1 ms at the peak
