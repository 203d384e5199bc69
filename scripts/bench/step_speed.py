"""Compare the training speed of models: images per second of a step with forward, backward and optimizer.

python scripts/bench/step_speed.py lipsformer_swin_tiny swin_tiny_patch4_window7_224 --amp bf16 --batch-size 128

The images are random and already on the device, so neither loading nor augmentation counts. The models run one after
the other, and the table gives the median step of each. ``--compile`` compiles them, in one of torch's modes if it is
given, and ``--options combo_kernels cpp_wrapper`` turns further options of torch's compiler on. ``--optim adamw2`` uses
AdamW².
"""

import sys
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from engine.device import peak_memory_gb, release_earlier_runs
from scripts.bench.options import bench_parser, heading
from scripts.bench.training_step import UNTIMED, new_step, tuned_device
from scripts.common.command_line import command, known_model
from scripts.common.tables import head, row


@command
def main() -> None:
    parser = bench_parser(__doc__, batch_size=128, turns=30, amp="bf16", optim="adamw", compile=None, options=[])
    parser.add_argument("models", nargs="+", type=known_model, help="models of this project or of timm")
    args = parser.parse_args()
    device = tuned_device()
    print(f"{heading(device, args)}\n\n{head('model', 'step, ms', 'images/s', 'peak memory, GiB')}")
    for name in args.models:
        release_earlier_runs(device)
        step = new_step(name, device, args)
        for _ in range(UNTIMED):
            step()
        time = median(step.seconds() for _ in range(args.turns))
        numbers = f"{1e3 * time:.1f}", f"{args.batch_size / time:.0f}", f"{peak_memory_gb(device):.1f}"
        print(row(name, *numbers), flush=True)
        del step  # its memory is not the next model's


if __name__ == "__main__":
    sys.exit(main())
