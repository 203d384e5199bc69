"""The callback of the lab that measures how smooth a model is during a training."""

import json

import pytest

from scripts.studies import smoothness
from tests.runs import SMALL, train_here

CALLBACK = "+callbacks.smoothness=scripts.studies.smoothness.Smoothness"


@pytest.mark.parametrize("form", ["certified", "dot"])
def test_the_local_constant_is_below_the_bound_if_there_is_one(form, small_images, here, monkeypatch):
    monkeypatch.setattr(smoothness, "EVERY", 2)
    train_here(*SMALL, f"model.attention={form}", f"data.root={small_images}", "name=a", "max_steps=3", CALLBACK)
    readings = [json.loads(line) for line in (here / "outputs/a/smoothness.jsonl").read_text().splitlines()]
    assert [line["step"] for line in readings] == [1, 2]
    assert all(line["local_lipschitz"] > 0 for line in readings)
    assert ["log10_bound" in line for line in readings] == [form == "certified"] * 2
    assert all(line["local_lipschitz"] < 10 ** line.get("log10_bound", 99) for line in readings)
