"""What a run records of a reading of its instruments, and on what it takes the reading."""

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from engine.callbacks.instruments import Instruments, of_each_layer, summary, worst_of_layers
from engine.run import RunLength
from engine.run_dir import RunDirectory
from stability import StabilityMonitor, StabilityReport
from tests.runs import NEVER_SAVED, SMALL, train_here

KINDS = ("sigma", "gradient", "update", "gain", "alpha", "activation", "diversity", "entropy", "rank", "sec")
HEADS = {"a": [1.0], "b": [2.0, 6.0], "c": [3.0]}
LARGEST, SMALLEST = (6.0, "b"), (1.0, "a")


def test_a_summary_has_the_worst_layer_of_each_kind_and_the_median():
    """Of b the worst head counts: 6 where large values are bad, 2 where small ones are. So the median is 3 or 2."""
    line = summary(StabilityReport(dict.fromkeys(KINDS, HEADS), {"b": [1], "c": [0]}, seconds=0.1))
    extremes = {f"{kind}_max": LARGEST for kind in ("sigma", "gradient", "update", "gain", "activation", "sec")}
    extremes |= {f"{kind}_min": SMALLEST for kind in ("diversity", "entropy", "rank")}
    expected = {"collapsed": 2}
    for name, (value, layer) in extremes.items():
        expected |= {name: value, f"{name}_of": layer}
    expected |= {f"{kind}_median": 3.0 for kind in ("gradient", "update", "alpha", "sec")}
    assert line == expected | {f"{kind}_median": 2.0 for kind in ("entropy", "rank")}


def test_loggers_plot_the_worst_head_of_each_layer():
    lines = of_each_layer(dict.fromkeys(KINDS, HEADS))
    assert {name: value for name, value in lines.items() if name.endswith("/b")} == {
        **{f"{kind}/b": 6.0 for kind in ("activation", "alpha", "sec")},
        **{f"{kind}/b": 2.0 for kind in ("diversity", "entropy", "rank")},
    }
    assert len(lines) == len(HEADS) * 6


def test_the_heat_maps_have_the_layers_of_the_last_reading_and_gaps_where_an_earlier_one_lacks_them():
    first = {"sigma": {"a": [1.0], "gone": [9.0]}}
    last = {"sigma": {"a": [2.0], "b": [3.0]}, "rank": {"a": [0.5, 0.9]}, "sec": {"a": [0.5, 0.9]}}
    assert worst_of_layers([{"layers": first}, {"layers": last}]) == {
        "sigma": {"a": [1.0, 2.0], "b": [None, 3.0]},
        "rank": {"a": [None, 0.5]},
        "sec": {"a": [None, 0.9]},
    }


def instruments_for(folder: Path, *reports: StabilityReport) -> Instruments:
    """Instruments that read these reports, one in each step."""
    left = iter(reports)
    monitor = SimpleNamespace(before_update=lambda images: None, after_update=lambda: next(left))
    callbacks = SimpleNamespace(on_line=lambda line: None)
    parts = (monitor, 1, RunDirectory(folder), RunLength(9, 10, 90), callbacks)
    instruments = Instruments(*parts)  # type: ignore[arg-type]
    for step in range(1, len(reports) + 1):
        with instruments.watch_update(step, torch.zeros(1)):
            pass
    return instruments


@pytest.mark.parametrize(("validations", "most"), [(3, 3), (90, 21)])
def test_loggers_get_a_few_pictures_and_the_last_one(tmp_path, monkeypatch, validations, most):
    """The file is drawn after each validation. But loggers keep every picture that they get."""
    instruments = instruments_for(tmp_path, *[StabilityReport({"sigma": {"a": [1.0]}}, {}, 0.1)] * 88)
    lines = instruments.directory.stability.read_text().splitlines(keepends=True)
    drawn, sent = [], []
    monkeypatch.setattr("engine.callbacks.instruments.draw_heat_maps", lambda kinds, steps, path: drawn.append(steps))
    instruments.callbacks = SimpleNamespace(on_picture=lambda name, path, step: sent.append(step))
    every = 90 // validations
    for step in range(every, 91, every):
        instruments.directory.stability.write_text("".join(lines[:step]))
        instruments.on_line({"split": "val", "step": step})
    instruments.on_end()
    assert len(drawn) >= validations and drawn[-1] == list(range(1, 89))
    assert len(sent) == len(set(sent)) <= most
    assert sent[0] <= every + 1 and sent[-1] == 88
    assert max(b - a for a, b in pairwise(sent)) <= max(every, 5)


def test_small_numbers_keep_five_digits_in_the_file(tmp_path):
    report = StabilityReport({"update": {"a": [1.234567e-6], "b": [123456.7]}}, {}, seconds=0.1)
    (line,) = instruments_for(tmp_path, report).directory.read_stability()
    assert line["layers"]["update"] == {"a": [1.2346e-6], "b": [123460.0]}


def test_a_run_is_warned_once_of_each_head_that_collapses(tmp_path, caplog):
    heads = {kind: {"a": [0.01, 0.02, 0.03]} for kind in ("entropy", "rank", "sec")}
    collapsed = ([1], [], [1], [0, 1, 2])
    instruments_for(tmp_path, *(StabilityReport(heads, {"a": of} if of else {}, 0.1) for of in collapsed))
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("step 1: attention collapses in a, head 1 (entropy 0.02, rank 0.02, energy in few direct")
    assert second.startswith("step 4: attention collapses in a, head 0 and 1 more (entropy 0.01,")


def test_a_reading_is_of_so_many_images_and_in_the_precision_of_the_run(small_images, here, monkeypatch):
    seen = []

    class Witness(StabilityMonitor):
        def after_update(self):
            def look(model, inputs):
                seen.append((len(inputs[0]), torch.is_autocast_enabled("cpu")))

            with self.model.register_forward_pre_hook(look):
                return super().after_update()

    monkeypatch.setattr("engine.callbacks.StabilityMonitor", Witness)
    chosen = ("amp=bf16", "monitor.images=2", "monitor.every=1", "max_steps=1")
    train_here(*SMALL, *NEVER_SAVED, f"data.root={small_images}", *chosen)
    assert seen == [(2, True)]
