"""Reading traces: hand-made traces, and traces of real runs with slow and with fast data."""

import json
import subprocess
import time

import pytest
import torch

from data.backends.torch_backend import CropDataset
from engine.measuring.span import span
from engine.measuring.trace import TRACE, read_trace
from tests.runs import SMALL, run_here, train_here


def event(name: str, start: float, duration: float, category: str = "user_annotation") -> dict:
    return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": duration}


def trace_of(folder, *events: dict):
    file = folder / "trace.json"
    other = [{"ph": "M", "name": "process_name"}, event("aten::mm", 0, 100, "cpu_op")]
    file.write_text(json.dumps({"traceEvents": [*other, *events]}))
    return file


STEPS = (
    *(event("ProfilerStep#6", 1000, 1000), event("ProfilerStep#7", 2000, 3000)),
    *(event("data wait", 1000, 100), event("data wait", 2000, 900), event("forward", 1100, 400)),
    *(event("backward", 1500, 500), event("data wait", 100, 500)),
)


def test_parts_of_a_step(tmp_path):
    """Two steps of 1 and 3 ms, with 1 ms of waiting in total. Events outside the steps do not count."""
    times = read_trace(trace_of(tmp_path, *STEPS))
    assert (times.steps, times.milliseconds) == (2, 2.0)
    assert times.shares == {"data wait": 0.25, "augment": 0, "forward": 0.1, "backward": 0.125, "update": 0}
    assert times.kernels is None and times.device_idle is None and times.device_starved is None


WORK = (
    *(event("a", 500, 700, "kernel"), event("b", 1100, 600, "kernel"), event("c", 1600, 600, "gpu_memcpy")),
    *(event("d", 2900, 1300, "kernel"), event("e", 3000, 10, "kernel"), event("set", 4900, 300, "gpu_memset")),
    event("data wait", 1000, 4000, "gpu_user_annotation"),
)


def test_a_device_that_has_nothing_to_do(tmp_path):
    """Kernels of two streams overlap. In 1.4 of 4 ms none runs; in 0.7 ms of these the host waits for data."""
    times = read_trace(trace_of(tmp_path, *STEPS, *WORK))
    assert times.device_idle == pytest.approx((700 + 700) / 4000)
    assert times.device_starved == pytest.approx(700 / 4000)
    assert times.kernels == 5 / 2  # the first began before the steps
    assert times.shares["data wait"] == 0.25


@pytest.mark.parametrize(
    ("content", "message"), [("{}", "is not a trace"), ("[1]", "is not a trace"), ("no", "is not a trace")]
)
def test_what_is_no_trace(content, message, tmp_path):
    (tmp_path / "trace.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_trace(tmp_path / "trace.json")
    with pytest.raises(ValueError, match="does not name the parts"):
        read_trace(trace_of(tmp_path, event("ProfilerStep#6", 0, 1)))


def read(run) -> subprocess.CompletedProcess:
    return run_here("scripts/read_profile.py", str(run), cwd=run)


@pytest.mark.parametrize(("work", "waits"), [((), "25.0%"), (WORK, "17.5%")], ids=["CPU", "GPU"])
def test_with_a_gpu_only_the_time_in_which_it_has_nothing_to_do_counts(work, waits, tmp_path):
    file = trace_of(tmp_path, *STEPS, *work)
    for limit, status in (("17", 1), ("20", 0 if work else 1), ("26", 0)):
        out = run_here("scripts/read_profile.py", str(file), "--limit", limit, cwd=tmp_path)
        assert out.returncode == status, out.stdout + out.stderr
        assert not status or f"a step waits for data for {waits} of its time (limit {limit} %)" in out.stdout


@pytest.mark.parametrize("is_slow", [False, True])
def test_a_real_run_waits_for_slow_data_only(is_slow, small_images, here, monkeypatch):
    """A decoder that takes a tenth of a second more for each micro-batch of 16."""
    decode = CropDataset.__getitem__

    def slow(self, crops):
        time.sleep(0.1)
        return decode(self, crops)

    if is_slow:
        monkeypatch.setattr(CropDataset, "__getitem__", slow)
    options = ("micro_batch_size=16", "max_steps=9", "profile=true", "monitor.every=0", "log_every=9")
    train_here(*SMALL, *options, f"data.root={small_images}", "name=a")
    times = read_trace(here / "outputs/a" / TRACE)
    assert times.steps == 4 and times.device_idle is None
    assert all(times.shares[part] > 0 for part in ("augment", "forward", "backward", "update"))
    assert 0.8 < sum(times.shares.values()) <= 1
    if is_slow:
        assert times.shares["data wait"] * times.milliseconds >= 200
    else:  # a share, because a busy machine takes longer for every part of a step
        assert times.shares["data wait"] < 0.5
    out = read(here / "outputs/a")
    assert f"{times.shares['data wait']:6.1%}  data wait" in out.stdout, out.stderr
    assert out.returncode == (times.shares["data wait"] > 0.05)
    assert is_slow <= out.returncode


def test_a_run_without_a_trace_is_a_mistake(tmp_path):
    out = read(tmp_path)
    assert out.returncode == 2 and "train with profile=true first" in out.stderr and out.stderr.count("\n") == 1


def test_without_a_profiler_a_span_is_nothing():
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler, span("data wait"):
        torch.ones(2).sum()
    assert "data wait" not in {average.key for average in profiler.key_averages()}
