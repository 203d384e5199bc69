"""Time AdamW²'s step beside torch's AdamW on the parameters of real models, in one run.

python scripts/bench_optim.py --models lipsformer_swin_tiny vit_base_patch16_224

The optimizers take turns, one step each, on gradients drawn anew for every turn, so that no estimate of a singular
value can settle; the table gives the median step and the median of its ratios, turn by turn, to AdamW(foreach=True).
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import timm
import torch
from torch import nn
from torch.optim import AdamW, Optimizer
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import models  # noqa: F401  (registers the models)
from engine.device import tune
from optim import AdamW2, param_groups

YARDSTICK = "AdamW, foreach"
EARLY = 25  # steps before the clock runs: the first ones take more iterations


def variants(tau: float) -> dict[str, Callable[..., Optimizer]]:
    """The optimizers, by name; each takes parameter groups."""
    return {
        YARDSTICK: partial(AdamW, foreach=True),
        "AdamW, fused": partial(AdamW, fused=True),
        f"AdamW², τ = {tau:g}": partial(AdamW2, tau=tau),
        "AdamW², τ = ∞ (nothing is skipped)": partial(AdamW2, tau=float("inf")),
    }


class Turn:
    """An optimizer of its own copy of a model's weights.

    Args:
        model: whose weights are copied.
        build: makes the optimizer.
        device: where it runs.
    """

    def __init__(self, model: nn.Module, build: Callable[..., Optimizer], device: torch.device):
        self.device = device
        groups = param_groups(model)
        for group in groups:
            group["params"] = [(n, nn.Parameter(p.detach().clone().to(device))) for n, p in group["params"]]
        self.weights = [p for group in groups for _, p in group["params"]]
        self.optimizer = build(groups, lr=1e-3, betas=(0.9, 0.98))

    def __call__(self, seed: int) -> float:
        """Take a step on fresh gradients; seconds."""
        generator = torch.Generator(self.device).manual_seed(seed)
        for weight in self.weights:
            weight.grad = torch.randn(weight.shape, generator=generator, device=self.device)
        self._wait()
        started = time.perf_counter()
        self.optimizer.step()
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def measure(name: str, turns: int, tau: float, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each step of each optimizer."""
    model = timm.create_model(name)
    runs = {label: Turn(model, build, device) for label, build in variants(tau).items()}
    for label, run in runs.items():
        for seed in range(EARLY if "AdamW²" in label else 2):
            run(seed)
    times: dict[str, list[float]] = {label: [] for label in runs}
    for seed in tqdm(range(turns), name, disable=None):
        for label, run in runs.items():
            times[label].append(run(EARLY + seed))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["lipsformer_swin_tiny", "vit_base_patch16_224"])
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--tau", type=float, default=AdamW2([nn.Parameter(torch.ones(1, 1))]).defaults["tau"])
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tune(device)
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    for name in args.models:
        times = measure(name, args.turns, args.tau, device)
        print(f"\n{name}, {where}, {args.turns} turns\n")
        print(f"| optimizer | step, ms | times {YARDSTICK} |\n| --- | --- | --- |")
        for label, found in times.items():
            ratio = median(a / b for a, b in zip(found, times[YARDSTICK], strict=True))
            print(f"| {label} | {median(found) * 1e3:.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
