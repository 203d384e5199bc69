"""eval.py benchmark=true: what it reports about a model, and how it measures time."""

import json
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import timm
import torch

from engine.evaluation import benchmark
from engine.evaluation.benchmark import measure_speed, time_runs
from engine.options.settings import eval_settings
from tests.devices import on_devices, run_on
from tests.runs import composed, run_here

SMALL = ("benchmark=true", "device=cpu", "amp=fp32", "data.crop=32", "eval.batch_size=4", "benchmark_runs=4")


def measured(*options: str):
    return measure_speed(eval_settings(composed(*SMALL, *options), None, [*SMALL, *options]), None)


@on_devices
def test_without_a_checkpoint_or_images(device, tmp_path, monkeypatch):
    """Parameters and multiply-adds are those that timm lists for the network at 224 pixels."""
    chosen = ("model=timm", "model.name=resnet18", "data.crop=224", *run_on(device))
    monkeypatch.setenv("IMAGENET_DIR", "/nowhere")
    out = run_here("eval.py", *SMALL, *chosen, cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    found = json.loads((tmp_path / "eval.json").read_text())["benchmark"]
    assert (found["model"], found["amp"], found["batch_size"], found["crop"]) == ("resnet18", "fp32", 4, 224)
    assert found["parameters"] == 11_689_512 and found["gmacs"] == pytest.approx(1.82, abs=0.01)
    assert found["runs"] == [4, 4] and found["images_per_second"] > 0
    assert (found["memory_gb"] is None) == (device == "cpu")
    assert 0 < found["latency_ms"] <= found["latency_p90_ms"]
    for said in ("11.69 M parameters, 1.81 GMACs at 224 pixels", "images/s at batch 4", "at batch 1, 9 of 10 within"):
        assert said in out.stdout


@pytest.fixture
def spend(monkeypatch) -> Callable[[float], None]:
    """Moves the benchmark's clock by some seconds. Nothing else moves it."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(benchmark, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return lambda seconds: setattr(clock, "now", clock.now + seconds)


def test_speeds_are_those_of_the_model(here, monkeypatch, spend):
    """A model that takes 5 ms, and 1 ms more for each image."""

    class Slow(torch.nn.Module):
        def forward(self, x):
            spend(0.005 + 0.001 * len(x))
            return x.mean(dim=(1, 2, 3))

    monkeypatch.setattr(benchmark, "trained_model", lambda *_: Slow())
    monkeypatch.setattr(benchmark, "forward_flops", lambda *_: 0)
    speed = measured("model=deit_tiny", "eval.batch_size=15", "benchmark_runs=9")
    assert speed.latency_ms == pytest.approx(6) and speed.images_per_second == pytest.approx(15 / 0.02)


def test_nine_of_ten_runs_are_within_the_latency_that_is_said(here, monkeypatch, spend):
    """A model that takes 1 to 10 ms by turns."""

    class Uneven(torch.nn.Module):
        calls = 0

        def forward(self, x):
            spend(0.001 * (1 + self.calls % 10))
            self.calls += 1
            return x.mean(dim=(1, 2, 3))

    monkeypatch.setattr(benchmark, "trained_model", lambda *_: Uneven())
    monkeypatch.setattr(benchmark, "forward_flops", lambda *_: 0)
    speed = measured("model=deit_tiny", "benchmark_runs=10")
    assert (speed.latency_ms, speed.latency_p90_ms) == pytest.approx((5.5, 9.1))


def test_precision_and_layout_are_those_asked_for_and_the_model_is_in_eval_mode(here, monkeypatch):
    seen = []

    class Witness(torch.nn.Linear):
        def forward(self, x):
            logits = super().forward(x[:, :, 0, 0])
            layout = x.is_contiguous(memory_format=torch.channels_last)
            seen.append((len(x), logits.dtype, layout, x.requires_grad, self.training))
            return logits

    monkeypatch.setattr(benchmark, "trained_model", lambda *_: Witness(3, 2))
    monkeypatch.setattr(benchmark, "forward_flops", lambda *_: 0)
    measured("model=deit_tiny", "amp=bf16", "channels_last=true", "benchmark_runs=1")
    passes = benchmark.WARM_UP_RUNS + 1
    assert seen == [(n, torch.bfloat16, True, False, False) for n in (4, 1) for _ in range(passes)]


def test_the_number_of_runs(monkeypatch, spend):
    monkeypatch.setattr(benchmark, "SECONDS", 0.05)
    assert len(time_runs(lambda: None, 7)) == 7
    assert len(time_runs(lambda: spend(0.06), None)) == benchmark.FEWEST_RUNS
    times = time_runs(lambda: spend(0.005), None)
    assert 10 <= len(times) <= 11 and min(times) == pytest.approx(0.005)


def test_a_checkpoint_brings_its_model(here):
    torch.save(timm.create_model("deit_tiny_patch16_224", img_size=32, num_classes=7).state_dict(), "w.pth")
    speed = measured("model=deit_tiny", "model.num_classes=7", "checkpoint=w.pth")
    assert speed.parameters == sum(v.numel() for v in torch.load("w.pth").values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "benchmark=true needs a model: add model=NAME"),
        (("model=deit_tiny", "sets.a=x"), "without sets"),
        (("model=deit_tiny", "predictions=x.csv"), "which has no classes to predict: leave out predictions"),
        (("model=deit_tiny", "output=nowhere/x.json"), "cannot be written"),
        (("model=deit_tiny", "output=."), "output=. is not a file"),
        (("model=deit_tiny", "benchmark_runs=0"), "benchmark_runs=0 must be more than 0"),
    ],
)
def test_mistakes(options, message, here):
    with pytest.raises(ValueError, match=message):
        measured(*options)


def test_one_process_at_a_time(here, monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="run it with python, not torchrun"):
        measured("model=deit_tiny")
