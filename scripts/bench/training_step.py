"""For benchmarks: the device, the time of something on it, and a training step."""

import argparse
import time
from collections.abc import Callable, Sequence
from statistics import median

import timm
import torch
from torch import Tensor, nn
from torch._inductor import list_mode_options
from torch.optim import AdamW, Optimizer

import models  # noqa: F401  (registers the models)
from engine.device import AMP_DTYPES, tune
from optim import AdamW2, GraphedStep, param_groups

UNTIMED = 5  # first steps: allocations, choice of kernels, compilation


def tuned_device() -> torch.device:
    """The GPU if there is one, else the CPU, with the settings that training has."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tune(device)
    return device


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that ``work`` takes, until the device has done it."""
    wait_for(device)
    started = time.perf_counter()
    work()
    wait_for(device)
    return time.perf_counter() - started


def ratio(of: Sequence[float], to: Sequence[float]) -> float:
    """Return the median of the ratios of each turn."""
    return median(a / b for a, b in zip(of, to, strict=True))


class TrainingStep:
    """Forward, backward and update on random images that are already on the device. Calling it takes a step.

    Args:
        model: the model, on its device, with ``num_classes``.
        side: side of the images.
        batch_size: number of images.
        dtype: what autocast computes in; float32: no autocast.
        forward: computes the logits; None: the model.
        optimizer: None: torch's fused AdamW.
    """

    def __init__(
        self,
        model: nn.Module,
        side: int,
        batch_size: int,
        dtype: torch.dtype = torch.float32,
        forward: Callable[[Tensor], Tensor] | None = None,
        optimizer: Optimizer | None = None,
    ):
        self.model = model.train()
        self.forward = model if forward is None else forward
        self.optimizer = AdamW(model.parameters(), lr=1e-4, fused=True) if optimizer is None else optimizer
        self.update = GraphedStep(self.optimizer) if GraphedStep.suits(self.optimizer) else self.optimizer.step
        self.device, self.dtype = next(model.parameters()).device, dtype
        self.images = torch.randn(batch_size, 3, side, side, device=self.device)
        self.labels = torch.randint(int(model.num_classes), (batch_size,), device=self.device)  # type: ignore[arg-type]

    def __call__(self) -> None:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits = self.forward(self.images)
        nn.functional.cross_entropy(logits.float(), self.labels).backward()
        self.update()
        self.optimizer.zero_grad()

    def seconds(self) -> float:
        """Take a step, and return its seconds."""
        return seconds(self, self.device)


def new_step(name: str, device: torch.device, args: argparse.Namespace) -> TrainingStep:
    """Return the training step of a model, as the command line wants it."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=1000, drop_path_rate=0.2).to(device)
    forward = model
    if args.compile:
        forward = torch.compile(model, options=list_mode_options(args.compile) | dict.fromkeys(args.options, True))
    side = model.default_cfg["input_size"][-1]
    return TrainingStep(model, side, args.batch_size, AMP_DTYPES[args.amp], forward, optimizer(args.optim, model))


def optimizer(name: str, model: nn.Module) -> Optimizer:
    """Return AdamW or AdamW² for a model."""
    groups = param_groups(model, 0.05, 0.0)
    return AdamW2(groups, 1e-3) if name == "adamw2" else AdamW(groups, 1e-3, fused=True)
