"""Measure what saving checkpoints costs the training of a model: the stall at each save, the speed, and host memory.

python scripts/bench/save_speed.py swin_base_patch4_window7_224 --amp bf16 --batch-size 64 --steps 200

The checkpoints hold the model, AdamW's or AdamW²'s moments and a moving average of the weights. They are written to a
temporary folder in ``--to`` and deleted at the end. The images are random and already on the device.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from engine.checkpoints.checkpoint import Checkpoints
from engine.moving_average import MovingAverage
from scripts.bench.options import bench_parser, heading
from scripts.bench.training_step import UNTIMED, TrainingStep, new_step, seconds, tuned_device, wait_for
from scripts.common.command_line import command, existing_folder, known_model, positive

STATE = {"config": {}, "callbacks": {}, "best": None, "validated": 0}


def steps_a_minute(step: TrainingStep, count: int, after: Callable[[int], None]) -> float:
    """Return the speed of ``count`` steps; ``after`` is called after each with its number, counted from 1."""

    def steps() -> None:
        for number in range(1, count + 1):
            step()
            after(number)

    return 60 * count / seconds(steps, step.device)


def host_gb() -> float:
    """Return the peak resident memory of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


@command
def main() -> None:
    parser = bench_parser(__doc__, batch_size=128, amp="bf16", optim="adamw", compile=None, options=[])
    parser.add_argument("model", type=known_model, help="a model of this project or of timm")
    parser.add_argument("--steps", type=positive, default=200)
    parser.add_argument("--every", type=positive, default=20, help="steps from one save to the next")
    parser.add_argument("--to", type=existing_folder, default=Path("."), help="a folder on the disk to measure")
    args = parser.parse_args()
    if args.steps < args.every:
        parser.error(f"--steps {args.steps} are too few for a save every {args.every} steps: see --every")
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
                wait_for(device)
                started = time.perf_counter()
                parts = {"model": step.model, "ema": average.module, "stepper": step.optimizer}
                states = {name: part.state_dict() for name, part in parts.items()}
                checkpoints.save(STATE | states | {"step": number}, is_best=False)
                stalls.append(time.perf_counter() - started)

        with_saves = steps_a_minute(step, args.steps, save)
        checkpoints.wait()
        size = checkpoints.last.stat().st_size / 1e9
    print(f"{args.model} on {heading(device, args)}")
    print(f"a checkpoint:    {size:.2f} GB")
    print(f"stall at a save: {stalls[0]:.2f} s at first, later at most {max(stalls[1:], default=0):.2f} s")
    print(f"steps a minute:  {without:.1f} without saves, {with_saves:.1f} with one every {args.every} steps")
    print(f"host memory:     {memory:.2f} GB without saves, {host_gb():.2f} GB with them")


if __name__ == "__main__":
    sys.exit(main())
