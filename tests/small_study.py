"""A study so small that a test can train it, and the lab that trains it in the test's own process."""

import sys
import time
from typing import Any

import pytest

from engine.callbacks.callback import Callback
from engine.run import Run
from engine.step import StepOutcome
from scripts import lab
from tests.runs import SMALL

STUDY = {
    "title": "A small study",
    "paper": "a paper",
    "seeds": [0, 1],
    "scales": {
        # Every run counts as crashed.
        "laptop": {"crash_below": 101.0, "base": [*SMALL, "epochs=1", "max_steps=6"], "ours": ["optim=adamw"]},
        "gpu": {"crash_below": 15.0, "base": ["epochs=9"], "ours": ["optim=adamw"]},
    },
    "axes": {"method": {"sgd": ["optim=sgd"], "adamw": ["$ours"]}, "lr": {"1e-3": ["optim.lr=1e-3"]}},
    "watch": {"keys": ["loss", "sigma_max", "sigma_mox"], "layers": ["diversity"], "cells": [["sgd", "1e-3"]]},
    "claims": [
        {
            "says": "AdamW is better",
            "rule": {
                "kind": "difference",
                "of": {"method": "adamw", "lr": "1e-3"},
                "minus": {"method": "sgd", "lr": "1e-3"},
                "least": 90,
            },
        }
    ],
}


class Slow(Callback):
    """Lets a training of a lab take a second for each step after the twentieth, until there is a file ``go``."""

    def __init__(self, run: Run, state: dict[str, Any] | None):
        self.steps, self.go = run.first, run.directory.path.parents[1] / "go"

    def after_step(self, outcome: StepOutcome) -> None:
        self.steps += 1
        if self.steps > 20 and not self.go.exists():
            time.sleep(1)


def start(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run ``lab.py`` with arguments, and return its exit status."""
    monkeypatch.setattr(sys, "argv", ["lab.py", *arguments])
    return lab.main()
