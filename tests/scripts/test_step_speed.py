"""The comparison of training speeds prints one row for each model."""

import re
import sys

import pytest

from scripts.bench.step_speed import main


@pytest.mark.parametrize("optim", ["adamw", "adamw2"])
def test_each_model_has_a_row(optim: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    names = ["test_byobnet", "test_resnet"]
    typed = ["--optim", optim, "--amp", "fp32", "--batch-size", "2", "--turns", "2"]
    monkeypatch.setattr(sys, "argv", ["step_speed.py", *names, *typed])
    main()
    rows = re.findall(r"^\| (test_\w+) \| ([\d.]+) \| (\d+) \| ([\d.]+) \|$", capsys.readouterr().out, re.MULTILINE)
    assert [row[0] for row in rows] == names
    for _, milliseconds, speed, memory in rows:
        assert float(milliseconds) > 0 and float(memory) > 0
        assert int(speed) == pytest.approx(2000 / float(milliseconds), rel=0.05, abs=1)
