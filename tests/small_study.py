"""A study so small that a test can train it, and the lab that trains it in the test's own process."""

import sys

import pytest

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


def start(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run ``lab.py`` with arguments, and return its exit status."""
    monkeypatch.setattr(sys, "argv", ["lab.py", *arguments])
    return lab.main()
