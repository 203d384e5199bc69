"""Count what a training step asks of a GPU, without a GPU: launches, bytes moved and FLOPs, by part of the model.

python scripts/bench/trace_step.py lipsformer_swin_tiny --vs swin_tiny_patch4_window7_224
python scripts/bench/trace_step.py lipsformer_swin_tiny --optim adamw2 --kernels torch --operations 20

The step runs eagerly on fake tensors, which have shapes but no values. An operation that computes or copies counts as
one launch; a view counts as none. Its bytes are the sizes of the tensors that it reads and writes, as if no cache kept
them. The last columns are lower bounds of the time on a GPU: no operation is faster than its bytes or its FLOPs at the
GPU's peak. They leave out the time in which the host launches the kernels.
"""

import argparse
import sys
from collections import defaultdict
from pathlib import Path
from unittest.mock import patch

import timm
import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import models  # noqa: F401  (registers the models)
from engine.device import AMP_DTYPES, GPUS
from models.kernels import KERNELS, set_kernels
from scripts.bench.fake_gpu import as_on_a_gpu
from scripts.bench.step_cost import Cost, CostCounter
from scripts.bench.step_speed import optimizer
from scripts.common.arguments import known_model, positive

CLASSES, SIDE, DROP_PATH, CLIP = 1000, 224, 0.2, 5.0
# The part of a step that a module belongs to: the first one whose word is in the name of its class.
PARTS = (
    ("Embed", "stem"),
    ("Stem", "stem"),
    ("Norm", "norms"),
    ("Merg", "merging"),
    ("Attention", "attention"),
    ("Mlp", "MLP"),
    ("Conv", "convolutions"),
    ("Residual", "residuals and norms"),
    ("DropPath", "residuals and norms"),
    ("Block", "residuals and norms"),
)
Costs = dict[tuple[str, str], Cost]


def traced(model: nn.Module, side: int, batch_size: int, amp: str, optim: str, kernels: str) -> CostCounter:
    """Return the counter of a model's training step: forward, backward, clipping and optimizer.

    Args:
        model: any image model. It cannot be used afterwards.
        side: side of its images in pixels.
        batch_size: images of a step.
        amp: one of ``AMP_DTYPES``.
        optim: ``adamw`` or ``adamw2``.
        kernels: ``triton`` or ``torch``, see :func:`models.kernels.set_kernels`.
    """
    model.train()
    with patch("models.kernels.choice.suits_triton", lambda device: True), as_on_a_gpu(model):
        set_kernels(model, kernels)
        steps = optimizer(optim, model)
        images = torch.empty(batch_size, 3, side, side)
        counter = CostCounter(model, PARTS)
        for _ in range(2):  # the optimizer's first step makes its state
            counter.operations.clear()
            _step(model, images, steps, AMP_DTYPES[amp], counter)
    return counter


def _step(
    model: nn.Module,
    images: torch.Tensor,
    steps: torch.optim.Optimizer,
    dtype: torch.dtype,
    counter: CostCounter,
) -> None:
    with counter:
        counter.stage = "forward"
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), torch.empty_like(logits, dtype=torch.float32))
        counter.stage = "backward"
        loss.backward()
        counter.stage = "clipping"
        nn.utils.clip_grad_norm_(model.parameters(), CLIP, foreach=True)
        counter.stage = "optimizer"
        steps.step()
        steps.zero_grad()


def by_part(counter: CostCounter) -> Costs:
    """Return the costs by stage and part, the most bytes first, and the sum."""
    costs: Costs = defaultdict(Cost)
    for operation in counter.operations:
        costs[operation.stage, operation.part] += operation.cost
        costs["all", ""] += operation.cost
    return dict(sorted(costs.items(), key=lambda item: (item[0][0] == "all", -item[1].bytes)))


def milliseconds(counter: CostCounter, gpu: str, stage: str = "all", part: str = "") -> float:
    """Return the least time of the step or of a part: each operation takes its bytes or its FLOPs at the GPU's peak."""
    peak = GPUS[gpu]
    chosen = (o.cost for o in counter.operations if stage == "all" or (o.stage, o.part) == (stage, part))
    return 1e3 * sum(max(cost.bytes / peak.bandwidth, cost.flops / peak.flops) for cost in chosen)


def print_table(name: str, counter: CostCounter, gpus: list[str]) -> None:
    """Print a row for each part."""
    print(f"\n{name}\n\n| part | launches | GB | GFLOP | {' | '.join(f'{gpu}, ms' for gpu in gpus)} |")
    print("| --- | " + " | ".join(["---"] * (3 + len(gpus))) + " |")
    for (stage, part), cost in by_part(counter).items():
        times = " | ".join(f"{milliseconds(counter, gpu, stage, part):.1f}" for gpu in gpus)
        where = ", ".join(filter(None, (stage, part)))
        print(f"| {where} | {cost.launches} | {cost.bytes / 1e9:.1f} | {cost.flops / 1e9:.0f} | {times} |")


def print_operations(counter: CostCounter, count: int) -> None:
    """Print the operations that move the most bytes."""
    costs: dict[str, Cost] = defaultdict(Cost)
    for operation in counter.operations:
        costs[operation.name] += operation.cost
    print("\n| operation | launches | GB |\n| --- | --- | --- |")
    for name, cost in sorted(costs.items(), key=lambda item: -item[1].bytes)[:count]:
        print(f"| `{name}` | {cost.launches} | {cost.bytes / 1e9:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=known_model, help="a model of this project or of timm")
    parser.add_argument("--vs", nargs="*", type=known_model, default=[], help="models to compare it with")
    parser.add_argument("--batch-size", type=positive, default=128)
    parser.add_argument("--amp", choices=tuple(AMP_DTYPES), default="bf16")
    parser.add_argument("--optim", choices=("adamw", "adamw2"), default="adamw")
    parser.add_argument("--kernels", choices=KERNELS[1:], default="triton", help="operations of LipsFormers")
    parser.add_argument("--gpus", nargs="*", choices=tuple(GPUS), default=["H100", "A100"])
    parser.add_argument("--operations", type=int, default=0, help="list this many operations")
    args = parser.parse_args()
    print(f"a training step, batch {args.batch_size}, {SIDE} px, {args.amp}, {args.optim}, eager")
    for name in [args.model, *args.vs]:
        model = timm.create_model(name, num_classes=CLASSES, drop_path_rate=DROP_PATH)
        counter = traced(model, SIDE, args.batch_size, args.amp, args.optim, args.kernels)
        print_table(name, counter, args.gpus)
        if args.operations:
            print_operations(counter, args.operations)


if __name__ == "__main__":
    main()
