"""Compare what plan.py says about the exchange of gradients with steps of DDP on this machine.

python scripts/bench/exchange_speed.py swin_tiny_patch4_window7_224 --processes 2,4,8 --batch-size 64 --amp bf16
OMP_NUM_THREADS=1 python scripts/bench/exchange_speed.py vit_tiny_patch16_224 --processes 1,2,4 --batch-size 8

The processes use one GPU each and NCCL, or gloo where there are not enough GPUs. The bandwidth is that of a sum of one
tensor as large as the gradients. From it, plan.py's arithmetic predicts the step with exchange out of the one without.
Both kinds of steps take turns; a step takes as long as in the slowest process. The images are random.
"""

import argparse
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import timm
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from engine.device import AMP_DTYPES, device_name, tune
from scripts.bench.options import bench_parser
from scripts.bench.training_step import TrainingStep
from scripts.common.command_line import command, known_model, positive
from scripts.common.tables import head, row
from scripts.machine.exchange import bus_bandwidth, in_processes, join
from scripts.plan import Machines, exchange_seconds, late_seconds

UNTIMED = 3  # steps of each kind before the timed ones
PATIENCE = 1800  # seconds for all steps on a number of processes


def positives(text: str) -> list[int]:
    """Parse whole numbers of 1 or more, separated by commas."""
    return [positive(number) for number in text.split(",")]


@command
def main() -> None:
    parser = bench_parser(__doc__, batch_size=8, amp="fp32")
    parser.add_argument("model", type=known_model, help="a model of this project or of timm")
    gpus = torch.cuda.device_count()
    usual = ",".join(str(count) for count in (1, 2, 4, 8, 16) if count <= (gpus or 4))
    parser.add_argument(
        "--processes", type=positives, default=usual, help="numbers of processes (default: %(default)s)"
    )
    parser.add_argument("--steps", type=positive, default=10, help="timed steps of each kind (default: %(default)s)")
    args = parser.parse_args()
    kind = "cuda" if gpus >= max(args.processes) else "cpu"
    with torch.device("meta"):
        gradients = 4 * sum(p.numel() for p in timm.create_model(args.model).parameters())
    where = device_name(torch.device(kind))
    print(f"{args.model} on {where}, {args.amp}, {args.batch_size} images, {gradients / 1e6:.0f} MB of gradients")
    print(head("processes", "bus bandwidth, GB/s", "step without exchange, ms", "step, ms", "step by plan.py, ms"))
    for count in args.processes:
        rate = bus_bandwidth(count, kind, gradients) if count > 1 else None
        alone, together = step_seconds(count, kind, args)
        late = 0.0
        if rate is not None:
            machines = Machines(within=rate / 1e9, per_node=count)
            late = late_seconds(exchange_seconds(gradients, count, machines), alone, gradients)
        shown = "–" if rate is None else f"{rate / 1e9:.2f}"
        print(row(count, shown, *(f"{time * 1e3:.0f}" for time in (alone, together, alone + late))), flush=True)


def step_seconds(count: int, kind: str, args: argparse.Namespace) -> tuple[float, float]:
    """Return the median seconds of a step of DDP without exchange, and with it."""
    with TemporaryDirectory() as folder:
        in_processes(take_steps, count, kind, folder, args, patience=PATIENCE)
        alone, together = json.loads(Path(folder, "seconds").read_text(encoding="ascii"))
    return alone, together


def take_steps(rank: int, count: int, kind: str, folder: str, args: argparse.Namespace) -> None:
    """Take steps in one of the processes. The first one writes the medians."""
    device = join(rank, count, kind, folder)
    tune(device)  # as training does
    model = timm.create_model(args.model).to(device)
    parallel = DistributedDataParallel(model, gradient_as_bucket_view=True)
    side = model.default_cfg["input_size"][-1]
    step = TrainingStep(model, side, args.batch_size, AMP_DTYPES[args.amp], forward=parallel)
    found: tuple[list[float], list[float]] = [], []
    for _ in range(UNTIMED + args.steps):
        for exchanges, times in enumerate(found):
            dist.barrier()
            with nullcontext() if exchanges else parallel.no_sync():
                taken = torch.tensor(step.seconds(), device=device)
            dist.all_reduce(taken, dist.ReduceOp.MAX)
            times.append(taken.item())
    if rank == 0:
        Path(folder, "seconds").write_text(json.dumps([median(times[UNTIMED:]) for times in found]), encoding="ascii")
    dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
