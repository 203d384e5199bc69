"""Measure the speed of a model's forward pass on random images: throughput in batches, and latency of one image."""

import logging
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from typing import Any

import torch
from torch import nn

from data import IMAGENET_CLASSES
from engine.checkpoints.saved_model import trained_model
from engine.compiling import Compiler
from engine.device import device_name
from engine.errors import UserError
from engine.evaluation.score_files import refuse_unwritable, write_json
from engine.measuring.flops import forward_flops
from engine.options.config import EvalConfig
from engine.runtime import Runtime

log = logging.getLogger(__name__)

WARM_UP_RUNS = 3  # at most; fewer if a pass is slow
FEWEST_RUNS = 3
SECONDS = 4.0  # duration of the timed passes at each batch size, if the user gives no number of passes


@dataclass(frozen=True)
class Speed:
    """The results of a benchmark.

    Attributes:
        images_per_second: median over passes with ``batch_size`` images, which are already on the device.
        latency_ms: median time from an image to its logits, one image at a time.
        latency_p90_ms: 90th percentile of this time.
        memory_gb: peak GPU memory at ``batch_size`` in GiB; None on a CPU.
        parameters: number of the model's parameters.
        gmacs: billions of multiply-adds for one image.
        batch_size: images in a pass.
        crop: side of the images in pixels.
        runs: number of timed passes at ``batch_size``, and with one image.
    """

    images_per_second: float
    latency_ms: float
    latency_p90_ms: float
    memory_gb: float | None
    parameters: int
    gmacs: float
    batch_size: int
    crop: int
    runs: tuple[int, int]


def measure_speed(cfg: EvalConfig, trained: dict[str, Any] | None) -> Speed:
    """Time a model's forward pass and write the results to ``cfg.output``.

    Args:
        cfg: the settings. Without a checkpoint the weights are random.
        trained: the content of a checkpoint of this project; None for other files, or without a checkpoint.

    Raises:
        UserError: or another of ``engine.errors.USER_ERRORS``, if the settings do not work.
    """
    runtime = Runtime.start(cfg)
    refuse_unwritable(cfg)
    if runtime.world.size > 1:
        raise UserError("benchmark=true measures one device: run it with python, not torchrun")
    classes = len(trained["classes"]) if trained else cfg.model.num_classes or IMAGENET_CLASSES
    model = trained_model(cfg, trained, classes)
    gmacs = forward_flops(model, cfg.data.crop) / 2e9
    compiler = Compiler(cfg, runtime.device)
    speed = _measure(compiler.wrap(model.to(runtime.device).eval()), cfg, runtime, gmacs)
    where = {"model": cfg.model.name, "device": device_name(runtime.device), "amp": cfg.amp}
    how = {"compile": compiler.is_on, "channels_last": cfg.channels_last}
    write_json(cfg, {"benchmark": where | how | asdict(speed)})
    _say(cfg, speed, where["device"], how)
    return speed


def _measure(network: nn.Module, cfg: EvalConfig, runtime: Runtime, gmacs: float) -> Speed:
    device = runtime.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    batch = _times(network, cfg.eval.batch_size, cfg, runtime)
    memory = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    single = _times(network, 1, cfg, runtime)
    return Speed(
        images_per_second=cfg.eval.batch_size / median(batch),
        latency_ms=1e3 * median(single),
        latency_p90_ms=1e3 * (quantiles(single, n=10, method="inclusive")[-1] if len(single) > 1 else single[0]),
        memory_gb=memory,
        parameters=sum(p.numel() for p in network.parameters()),
        gmacs=gmacs,
        batch_size=cfg.eval.batch_size,
        crop=cfg.data.crop,
        runs=(len(batch), len(single)),
    )


@torch.inference_mode()
def _times(network: nn.Module, count: int, cfg: EvalConfig, runtime: Runtime) -> list[float]:
    """Return the seconds of each timed forward pass with ``count`` images."""
    images = runtime.laid_out(torch.randn(count, 3, cfg.data.crop, cfg.data.crop, device=runtime.device))

    def forward() -> None:
        with runtime.autocast():
            network(images)
        if runtime.device.type == "cuda":
            torch.cuda.synchronize(runtime.device)

    warm = time.perf_counter() + SECONDS / 2
    for run in range(WARM_UP_RUNS):
        if run == 0 or time.perf_counter() < warm:
            forward()
    return time_runs(forward, cfg.benchmark_runs)


def time_runs(work: Callable[[], object], runs: int | None) -> list[float]:
    """Return the seconds of each of ``runs`` calls; without ``runs``, of as many calls as fit into ``SECONDS``."""
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(times) < (runs or FEWEST_RUNS) or (runs is None and time.perf_counter() < end):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return times


def _say(cfg: EvalConfig, speed: Speed, where: str, how: dict[str, bool]) -> None:
    weights = cfg.checkpoint or "random weights"
    log.info(
        "%s (%s): %.2f M parameters, %.2f GMACs at %d pixels",
        *(cfg.model.name, weights, speed.parameters / 1e6, speed.gmacs, speed.crop),
    )
    extra = "".join(f", {name}" for name, is_on in how.items() if is_on)
    log.info("%s, %s%s", where, cfg.amp, extra)
    log.info("%.1f images/s at batch %d (%d runs)", speed.images_per_second, speed.batch_size, speed.runs[0])
    log.info(
        "latency %.2f ms at batch 1, 9 of 10 within %.2f ms (%d runs)",
        *(speed.latency_ms, speed.latency_p90_ms, speed.runs[1]),
    )
    if speed.memory_gb is not None:
        log.info("%.2f GiB of GPU memory at batch %d", speed.memory_gb, speed.batch_size)
    log.info("written to %s", os.path.relpath(cfg.output))
