"""Compare the training speed of models: images per second of a step with forward, backward and optimizer.

python scripts/bench/step_speed.py lipsformer_swin_tiny swin_tiny_patch4_window7_224 --amp bf16 --batch-size 128

The images are random and already on the device, so neither loading nor augmentation counts. The models run one after
the other, and the table gives the median step of each. ``--compile`` compiles them, in one of torch's modes if it is
given, and ``--options combo_kernels cpp_wrapper`` turns further options of torch's compiler on. ``--optim adamw2`` uses
AdamW².
"""

import argparse
import sys
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from engine.device import AMP_DTYPES, device_name, peak_memory_gb, release_earlier_runs
from scripts.bench.training_step import UNTIMED, new_step, tuned_device
from scripts.common.arguments import known_model, positive


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=known_model, help="models of this project or of timm")
    parser.add_argument("--optim", choices=("adamw", "adamw2"), default="adamw")
    parser.add_argument("--amp", choices=tuple(AMP_DTYPES), default="bf16")
    parser.add_argument("--batch-size", type=positive, default=128)
    parser.add_argument("--turns", type=positive, default=30)
    parser.add_argument("--compile", nargs="?", const="default", metavar="MODE")
    parser.add_argument("--options", nargs="*", default=[], help="options of torch's compiler to turn on")
    args = parser.parse_args()
    device = tuned_device()
    print(f"{device_name(device)}, torch {torch.__version__}, {args.amp}, batch {args.batch_size}, {args.optim}\n")
    print("| model | step, ms | images/s | peak memory, GiB |\n| --- | --- | --- | --- |")
    for name in args.models:
        release_earlier_runs(device)
        step = new_step(name, device, args)
        for _ in range(UNTIMED):
            step()
        time = median(step.seconds() for _ in range(args.turns))
        speed, memory = args.batch_size / time, peak_memory_gb(device)
        print(f"| {name} | {1e3 * time:.1f} | {speed:.0f} | {memory:.1f} |", flush=True)
        del step  # its memory is not the next model's


if __name__ == "__main__":
    main()
