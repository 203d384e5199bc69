"""Count what a training step asks of a GPU, without a GPU: launches, bytes moved and FLOPs, by part of the model.

python scripts/bench/trace_step.py lipsformer_swin_tiny --vs swin_tiny_patch4_window7_224
python scripts/bench/trace_step.py lipsformer_swin_tiny --optim adamw2 --kernels torch --operations 20

The step runs eagerly on fake tensors, which have shapes but no values. An operation that computes or copies counts as
one launch; a view counts as none. Its bytes are the sizes of the tensors that it reads and writes, as if no cache kept
them. The last columns are lower bounds of the time on a GPU: no operation is faster than its bytes or its FLOPs at the
GPU's peak. They leave out the time in which the host launches the kernels.
"""

import sys
from collections import defaultdict
from pathlib import Path

import timm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import models  # noqa: F401  (registers the models)
from engine.measuring.gpus import GPUS
from models.kernels import KERNELS
from scripts.bench.options import bench_parser
from scripts.bench.step_cost import Cost, CostCounter, milliseconds, traced
from scripts.common.command_line import command, known_model, whole
from scripts.common.tables import head, row

CLASSES, DROP_PATH = 1000, 0.2
Costs = dict[tuple[str, str], Cost]


def by_part(counter: CostCounter) -> Costs:
    """Return the costs by stage and part, the most bytes first, and the sum."""
    costs: Costs = defaultdict(Cost)
    for operation in counter.operations:
        costs[operation.stage, operation.part] += operation.cost
        costs["all", ""] += operation.cost
    return dict(sorted(costs.items(), key=lambda item: (item[0][0] == "all", -item[1].bytes)))


def print_table(name: str, counter: CostCounter, gpus: list[str]) -> None:
    """Print a row for each part."""
    print(f"\n{name}\n\n{head('part', 'launches', 'GB', 'GFLOP', *(f'{gpu}, ms' for gpu in gpus))}")
    for (stage, part), cost in by_part(counter).items():
        times = (f"{milliseconds(counter, gpu, stage, part):.1f}" for gpu in gpus)
        where = ", ".join(filter(None, (stage, part)))
        print(row(where, cost.launches, f"{cost.bytes / 1e9:.1f}", f"{cost.flops / 1e9:.0f}", *times))


def print_operations(counter: CostCounter, count: int) -> None:
    """Print the operations that move the most bytes."""
    costs: dict[str, Cost] = defaultdict(Cost)
    for operation in counter.operations:
        costs[operation.name] += operation.cost
    print(f"\n{head('operation', 'launches', 'GB')}")
    for name, cost in sorted(costs.items(), key=lambda item: -item[1].bytes)[:count]:
        print(row(f"`{name}`", cost.launches, f"{cost.bytes / 1e9:.2f}"))


@command
def main() -> None:
    parser = bench_parser(__doc__, batch_size=128, amp="bf16", optim="adamw")
    parser.add_argument("model", type=known_model, help="a model of this project or of timm")
    parser.add_argument("--vs", nargs="*", type=known_model, default=[], help="models to compare it with")
    parser.add_argument("--kernels", choices=KERNELS[1:], default="triton", help="operations of LipsFormers")
    parser.add_argument("--gpus", nargs="*", choices=tuple(GPUS), default=["H100", "A100"])
    parser.add_argument("--operations", type=whole, default=0, help="list this many operations")
    args = parser.parse_args()
    print(f"a training step, batch {args.batch_size}, {args.amp}, {args.optim}, eager")
    for name in [args.model, *args.vs]:
        model = timm.create_model(name, num_classes=CLASSES, drop_path_rate=DROP_PATH)
        side = model.default_cfg["input_size"][-1]
        counter = traced(model, side, args.batch_size, args.amp, args.optim, args.kernels)
        print_table(f"{name}, {side} px", counter, args.gpus)
        if args.operations:
            print_operations(counter, args.operations)


if __name__ == "__main__":
    sys.exit(main())
