"""The measurement of saving prints every number, and leaves no file."""

import re
import sys
from pathlib import Path

import pytest

from scripts.bench.save_speed import main


def test_it_prints_stall_speed_and_memory(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture) -> None:
    typed = ["--amp", "fp32", "--batch-size", "2", "--steps", "4", "--every", "2", "--to", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["save_speed.py", "test_resnet", *typed])
    main()
    said = capsys.readouterr().out
    for line in (
        r"test_resnet on CPU.*, fp32, batch 2, adamw\na checkpoint:    \d\.\d\d GB",
        r"stall at a save: [\d.]+ s at first, later at most [\d.]+ s",
        r"steps a minute:  [\d.]+ without saves, [\d.]+ with one every 2 steps",
        r"host memory:     [\d.]+ GB without saves, [\d.]+ GB with them",
    ):
        assert re.search(line, said), said
    assert not list(tmp_path.iterdir())
