"""Measure what saving checkpoints costs the training of a model: the stall at each save, the speed, and host memory.

python scripts/bench/save_speed.py swin_base_patch4_window7_224 --amp bf16 --batch-size 64 --steps 200

The checkpoints hold the model, AdamW's or AdamW²'s moments and a moving average of the weights. They are written to a
temporary folder in ``--to`` and deleted at the end. The images are random and already on the device.
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from engine.checkpoints.checkpoint import Checkpoints
from engine.device import AMP_DTYPES, device_name
from engine.moving_average import MovingAverage
from scripts.bench.training_step import UNTIMED, TrainingStep, new_step, tuned_device
from scripts.common.arguments import existing_folder, known_model, positive

STATE = {"config": {}, "callbacks": {}, "best": None, "validated": 0}


def steps_a_minute(step: TrainingStep, count: int, wait: Any) -> float:
    """Return the speed of ``count`` steps; ``wait`` is called after each with its number, counted from 1."""
    started = time.perf_counter()
    for number in range(1, count + 1):
        step()
        wait(number)
    synchronize(step.device)
    return 60 * count / (time.perf_counter() - started)


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def host_gb() -> float:
    """Return the peak resident memory of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=known_model, help="a model of this project or of timm")
    parser.add_argument("--optim", choices=("adamw", "adamw2"), default="adamw")
    parser.add_argument("--amp", choices=tuple(AMP_DTYPES), default="bf16")
    parser.add_argument("--batch-size", type=positive, default=128)
    parser.add_argument("--steps", type=positive, default=200)
    parser.add_argument("--every", type=positive, default=20, help="steps from one save to the next")
    parser.add_argument("--compile", nargs="?", const="default", metavar="MODE")
    parser.add_argument("--options", nargs="*", default=[], help="options of torch's compiler to turn on")
    parser.add_argument("--to", type=existing_folder, default=Path("."), help="a folder on the disk to measure")
    args = parser.parse_args()
    device = tuned_device()
    step = new_step(args.model, device, args)
    average = MovingAverage(step.model, 0.9999)
    for _ in range(UNTIMED):
        step()
    without = steps_a_minute(step, args.steps, lambda number: None)
    memory, stalls = host_gb(), []
    with tempfile.TemporaryDirectory(dir=args.to) as folder:
        checkpoints = Checkpoints(Path(folder), keep=1)

        def save(number: int) -> None:
            if number % args.every == 0:
                synchronize(device)
                started = time.perf_counter()
                parts = {"model": step.model, "ema": average.module, "stepper": step.optimizer}
                states = {name: part.state_dict() for name, part in parts.items()}
                checkpoints.save(STATE | states | {"step": number}, is_best=False)
                stalls.append(time.perf_counter() - started)

        with_saves = steps_a_minute(step, args.steps, save)
        checkpoints.wait()
        size = checkpoints.last.stat().st_size / 1e9
    print(f"{args.model} on {device_name(device)}, {args.amp}, batch {args.batch_size}, {args.optim}")
    print(f"a checkpoint:    {size:.2f} GB")
    print(f"stall at a save: {stalls[0]:.2f} s at first, later at most {max(stalls[1:], default=0):.2f} s")
    print(f"steps a minute:  {without:.1f} without saves, {with_saves:.1f} with one every {args.every} steps")
    print(f"host memory:     {memory:.2f} GB without saves, {host_gb():.2f} GB with them")


if __name__ == "__main__":
    main()
