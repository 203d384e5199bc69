"""Waiting for data is reported once, not at the start, with advice for the backend and the device."""

import logging
import os
from types import SimpleNamespace

import pytest
import torch

from engine.callbacks.data_wait import DataWait
from engine.processes.distributed import World
from engine.runtime import Runtime
from tests.runs import SMALL, metrics, train_here

CORES = len(os.sched_getaffinity(0))


def watch(backend: str = "torch", device: str = "cpu", workers: int | None = None, local_size: int = 1) -> DataWait:
    config = SimpleNamespace(data=SimpleNamespace(backend=backend), max_workers=workers)
    return DataWait(config, Runtime(World(0, local_size, 0, local_size), torch.device(device)))  # type: ignore[arg-type]


def heard(waiting: DataWait, shares: tuple[float, ...], caplog) -> list[str]:
    """The warnings that are logged after each interval."""
    texts = []
    for share in shares:
        with caplog.at_level("WARNING"):
            waiting.on_line({"split": "train", "data_wait": share})
        texts.append(" ".join(record.message for record in caplog.records))
        caplog.clear()
    return texts


def said(**kind) -> str:
    return watch(**kind).advice(0.2)


def test_once_and_not_at_the_start(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("engine"), "propagate", True)
    texts = heard(watch(), (0.9, 0.0, 0.05, 0.051, 0.9), caplog)
    assert [bool(text) for text in texts] == [False, False, False, True, False]
    assert texts[3].startswith("5% of the time is spent waiting for data. To change this: ")


@pytest.mark.parametrize("backend", ["torch", "dali"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_advice_is_for_the_backend_and_the_device(backend, device):
    text = said(backend=backend, device=device, workers=CORES)
    assert ("data.backend=dali, which decodes on the GPU" in text) == (backend == "torch" and device == "cuda")
    assert ("data.backend=dali, which decodes only the crops" in text) == (backend == "torch" and device == "cpu")
    assert "max_workers" not in text and "fewer" not in text and "faster disk" in text


def test_advice_is_for_the_workers_and_the_processes():
    assert f"set max_workers={CORES}" in said(workers=0) and "(now 0)" in said(workers=0)
    assert "max_workers" not in said(workers=None)
    assert "run fewer than 3 processes" in said(local_size=3)
    assert "max_workers" not in said(workers=max(1, CORES // 2), local_size=2)


def test_noise_needs_no_advice(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("engine"), "propagate", True)
    assert heard(watch(backend="synthetic"), (0.9, 0.9), caplog) == ["", ""]


def test_a_run_that_waits_says_so_once(small_images, here, capsys):
    """Without workers, the images are decoded between the steps."""
    train_here(*SMALL, f"data.root={small_images}", "name=a", "model.depths=[1]", "model.num_heads=[1]", "epochs=1")
    shares = [line["data_wait"] for line in metrics(here / "outputs/a", "train")]
    assert max(shares[1:]) > 0.05
    lines = [line for line in capsys.readouterr().out.splitlines() if "waiting for data" in line]
    assert len(lines) == 1 and "set max_workers=" in lines[0]
    assert lines[0] in (here / "outputs/a/train.log").read_text()
