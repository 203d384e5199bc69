"""Compare the speed of a LipsFormer's training step with the same model computed with the authors' operations.

python scripts/bench/model_speed.py --model lipsformer_swin_tiny

The variants take turns, one step each, so that noise of the machine affects all of them. The table gives the median
step, and the median of the speedups over the released form in each turn. Peak memory is measured in a new process for
each variant.
"""

import argparse
import multiprocessing
import sys
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from statistics import median

import timm
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import models  # noqa: F401  (registers the models)
from engine.device import AMP_DTYPES
from scripts.bench.as_released import AsReleased
from scripts.bench.options import bench_parser, heading
from scripts.bench.training_step import TrainingStep, ratio, tuned_device
from scripts.common.command_line import command, known_model, positive
from scripts.common.tables import head, row

VARIANTS: dict[str, Callable[[nn.Module], Callable[[Tensor], Tensor]]] = {
    "as released": lambda model: AsReleased(model),  # type: ignore[arg-type]
    "as released, nothing recomputed": lambda model: AsReleased(model, recompute=False),  # type: ignore[arg-type]
    "ours": lambda model: model,
    "ours, compiled": lambda model: torch.compile(model, fullgraph=True),
}
RELEASED = "as released"


def a_lipsformer(text: str) -> str:
    """Parse the name of a LipsFormer.

    Raises:
        ArgumentTypeError: if the text is no such name.
    """
    if not known_model(text).startswith("lipsformer"):
        raise argparse.ArgumentTypeError(f"{text} is no LipsFormer: only these have a released form")
    return text


def new_step(name: str, args: argparse.Namespace) -> TrainingStep:
    """Return the training step of a variant."""
    torch.manual_seed(0)
    device = tuned_device()
    model = timm.create_model(args.model, img_size=args.img_size).to(device)
    return TrainingStep(model, args.img_size, args.batch_size, AMP_DTYPES[args.amp], VARIANTS[name](model))


def peak_memory(name: str, args: argparse.Namespace) -> float:
    """Return the peak GiB of a variant's training step, beside model and optimizer. Call this in a new process."""
    step = new_step(name, args)
    step()
    if step.device.type == "cuda":
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return (torch.cuda.max_memory_allocated() - held) / 2**30
    # Use the allocator's records: resident memory also depends on how much memory the C library returns to the system.
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return max(accumulate(size for _, size in changes)) / 2**30


@command
def main() -> None:
    usual = "bf16" if torch.cuda.is_available() else "fp32"  # a GPU's attention kernel refuses a compiled fp32 bias
    parser = bench_parser(__doc__, batch_size=8, turns=15, amp=usual)
    parser.add_argument("--model", type=a_lipsformer, default="lipsformer_swin_tiny", help="a LipsFormer")
    parser.add_argument("--img-size", type=positive, default=224)
    parser.add_argument("--no-compile", action="store_true", help="leave out the compiled variant, minutes on a CPU")
    args = parser.parse_args()
    names = [name for name in VARIANTS if not (args.no_compile and "compiled" in name)]
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        memory = {name: pool.apply(peak_memory, (name, args)) for name in tqdm(names, "memory", disable=None)}
    steps = {name: new_step(name, args) for name in names}
    for step in steps.values():
        step(), step()  # compilation and first allocations
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in tqdm(range(args.turns), "turns", disable=None):
        for name, step in steps.items():
            times[name].append(step.seconds())
    report(args, times, memory)


def report(args: argparse.Namespace, times: dict[str, list[float]], memory: dict[str, float]) -> None:
    """Print the table in Markdown."""
    print(f"\n{args.model}, {args.img_size} pixels, {heading(tuned_device(), args)}; {args.turns} turns\n")
    print(head("variant", "step, ms", "speed over the released form", "peak memory, GiB"))
    for name, found in times.items():
        speed = ratio(times[RELEASED], found)
        print(row(name, f"{median(found) * 1e3:.0f}", f"{speed:.2f}", f"{memory[name]:.2f}"))


if __name__ == "__main__":
    sys.exit(main())
