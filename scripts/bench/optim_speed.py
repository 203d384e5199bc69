"""Compare the speed of AdamW²'s step with torch's AdamW on real gradients of real models.

python scripts/bench/optim_speed.py --models lipsformer_swin_tiny vit_base_patch16_224

AdamW² with a finite τ trains each model on the embedded images (Fashion-MNIST, enlarged), with other images in every
step. All optimizers take turns. Each steps its own copy of the weights with the same gradients. The first steps are not
timed, because AdamW²'s very first step takes more iterations. The first table gives the median step, and the median of
its ratios to AdamW(fused=True) in each turn. The second table gives the time of a whole training step (forward and
backward at --batch-size, and the optimizer) with AdamW(fused=True), and what AdamW² adds to it.

The last row of the first table is the least cost of a direct implementation of the algorithm: AdamW(foreach=True), and
one power iteration with one vector for each update and each weight, one matrix after the other. It caps nothing.

With --gradients random, each turn draws random gradients, without the forward and backward pass of the model.
"""

import argparse
import random
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torchvision.io import ImageReadMode, decode_image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import models  # noqa: F401  (registers the models)
from data.storage.archive import PROJECT, unpacked
from engine.device import device_name
from optim import AdamW2, param_groups
from scripts.bench.options import bench_parser
from scripts.bench.training_step import ratio, seconds, tuned_device
from scripts.common.command_line import command, known_model
from scripts.common.tables import head, row

YARDSTICK = "AdamW, fused"
EARLY = 3  # steps that are not timed


class OneVectorEach(AdamW):
    """AdamW, plus the products of one power iteration with one vector for each weight and update."""

    def step(self, closure: Any = None) -> Any:
        """Take AdamW's step and compute the products."""
        loss = super().step(closure)
        for group in self.param_groups:
            for weight in group["params"]:
                if group["cap"]:
                    for key, matrix in (("v of W", weight.detach()), ("v of u", self.state[weight]["exp_avg"])):
                        matrix = matrix.flatten(1)
                        before = self.state[weight].get(key, matrix[0])
                        image = matrix @ before
                        after = matrix.mT @ (image / image.norm())
                        self.state[weight][key] = after / after.norm()
        return loss


def variants(tau: float) -> dict[str, Callable[..., Optimizer]]:
    """Return functions that build the optimizers from parameter groups, by name. The first one trains the model."""
    return {
        f"AdamW², τ = {tau:g}": partial(AdamW2, tau=tau),
        YARDSTICK: partial(AdamW, fused=True),
        "AdamW, foreach": partial(AdamW, foreach=True),
        "AdamW², τ = ∞": partial(AdamW2, tau=float("inf")),
        "AdamW, foreach, and one vector's products": partial(OneVectorEach, foreach=True),
    }


def copied(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Copy parameter groups with their parameters."""
    return [g | {"params": [(n, nn.Parameter(p.detach().clone())) for n, p in g["params"]]} for g in groups]


def weights_of(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def embedded_batches(size: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of the embedded training images and their labels without end, in the same order at every call."""
    config = OmegaConf.load(PROJECT / "conf/data/fashion_mnist.yaml")
    folders = sorted((unpacked(PROJECT / config.archive, config.archive_sha256) / "train").iterdir())
    files = [(str(file), label) for label, folder in enumerate(folders) for file in sorted(folder.iterdir())]
    draws = random.Random(0)
    while True:
        chosen = draws.sample(files, batch_size)
        images = torch.stack([decode_image(file, ImageReadMode.RGB) for file, _ in chosen]) / 255
        images = (images - config.mean[0]) / config.std[0]
        yield F.interpolate(images, (size, size), mode="bilinear"), torch.tensor([label for _, label in chosen])


def real_gradients(model: nn.Module, batch_size: int) -> Iterator[float]:
    """Compute gradients from other images each time, and yield the seconds of forward and backward."""
    device = next(model.parameters()).device
    for images, labels in embedded_batches(model.pretrained_cfg["input_size"][-1], batch_size):  # type: ignore[index]
        model.zero_grad()
        images, labels = images.to(device), labels.to(device)
        yield seconds(lambda x=images, y=labels: F.cross_entropy(model(x), y).backward(), device)  # type: ignore[misc]


def random_gradients(model: nn.Module) -> Iterator[float]:
    """Fill the gradients with normal random numbers, and yield 0 seconds for forward and backward."""
    generator = torch.Generator(next(model.parameters()).device).manual_seed(0)
    while True:
        for weight in model.parameters():
            weight.grad = torch.randn(weight.shape, generator=generator, device=weight.device)
        yield 0.0


def measure(name: str, args: argparse.Namespace, device: torch.device) -> tuple[dict[str, list[float]], list[float]]:
    """Return the seconds of each step of each optimizer, and of each forward and backward."""
    torch.manual_seed(0)
    model = timm.create_model(name).to(device).train()
    builds = variants(args.tau)
    leader = next(iter(builds))
    optimizers = {}
    for label, build in builds.items():
        groups = param_groups(model)  # new groups for each: an optimizer keeps and changes them
        optimizers[label] = build(groups if label == leader else copied(groups), lr=1e-3, betas=(0.9, 0.98))
    gradients = random_gradients(model) if args.gradients == "random" else real_gradients(model, args.batch_size)
    times: dict[str, list[float]] = {label: [] for label in optimizers}
    before: list[float] = []
    for turn in tqdm(range(EARLY + args.turns), name, disable=None):
        passes = next(gradients)
        if turn >= EARLY:
            before.append(passes)
        for label, optimizer in optimizers.items():
            for weight, leading in zip(weights_of(optimizer), weights_of(optimizers[leader]), strict=True):
                weight.grad = leading.grad
            found = seconds(optimizer.step, device)
            if turn >= EARLY:
                times[label].append(found)
    return times, before


def print_whole_step(times: dict[str, list[float]], before: list[float], batch_size: int) -> None:
    """Print what AdamW² adds to a whole training step with ``YARDSTICK``, measured in the same turns."""
    whole = [passes + step for passes, step in zip(before, times[YARDSTICK], strict=True)]
    print(f"\n{head(f'whole step, batch {batch_size}', 'ms', 'more')}")
    for label, found in times.items():
        if label == YARDSTICK or label.startswith("AdamW²"):
            turns = zip(found, times[YARDSTICK], whole, strict=True)
            more = median((own - theirs) / step for own, theirs, step in turns)
            own_step = median(passes + own for passes, own in zip(before, found, strict=True))
            print(row(label, f"{own_step * 1e3:.0f}", f"{more:+.1%}"))


@command
def main() -> None:
    parser = bench_parser(__doc__, batch_size=8, turns=15)
    parser.add_argument(
        "--models", nargs="+", type=known_model, default=["lipsformer_swin_tiny", "vit_base_patch16_224"]
    )
    parser.add_argument("--gradients", choices=["real", "random"], default="real")
    parser.add_argument("--tau", type=float, default=AdamW2([nn.Parameter(torch.ones(1, 1))]).defaults["tau"])
    args = parser.parse_args()
    if not args.tau > 0:
        parser.error(f"--tau {args.tau:g} is not above 0")
    device = tuned_device()
    where = device_name(device)
    for name in args.models:
        times, before = measure(name, args, device)
        print(f"\n{name}, {where}, {args.turns} turns, {args.gradients} gradients\n")
        print(head("optimizer", "step, ms", f"times {YARDSTICK}"))
        for label, found in times.items():
            print(row(label, f"{median(found) * 1e3:.1f}", f"{ratio(found, times[YARDSTICK]):.2f}"))
        if args.gradients == "real":
            print_whole_step(times, before, args.batch_size)


if __name__ == "__main__":
    sys.exit(main())
