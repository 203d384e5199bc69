"""Time a depthwise convolution and its gradients on the maps of a LipsFormer.

python scripts/bench/depthwise_speed.py --batch-size 128 --amp bf16

The gradient of the input is timed twice: as the library computes it, and as ``models/depthwise.py`` does, by a forward
convolution with the turned kernel.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.benchmark import Timer

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from engine.device import AMP_DTYPES
from scripts.bench.options import bench_parser, heading
from scripts.bench.training_step import tuned_device
from scripts.common.command_line import command
from scripts.common.tables import head, row

MAPS = ((56, 96), (28, 192), (14, 384), (7, 768))  # side and channels of the stages of a tiny model at 224 pixels
KERNEL = 7
SECONDS = 0.5  # of each measurement


def milliseconds(work: Callable[[], object]) -> float:
    """Return the median time of a call."""
    return Timer("work()", globals={"work": work}).blocked_autorange(min_run_time=SECONDS).median * 1e3


def times(batch: int, side: int, channels: int, device: torch.device, dtype: torch.dtype) -> list[float]:
    """Return the times in milliseconds, in the order of the table."""
    x, grad = torch.randn(2, batch, side, side, channels, device=device, dtype=dtype).permute(0, 1, 4, 2, 3)
    weight = torch.randn(channels, 1, KERNEL, KERNEL, device=device, dtype=dtype)
    options = {"padding": KERNEL // 2, "groups": channels}
    inputs = (x.detach().requires_grad_(), weight.detach().requires_grad_())
    y = F.conv2d(*inputs, **options)
    return [
        milliseconds(lambda: F.conv2d(x, weight, **options)),
        milliseconds(lambda: torch.autograd.grad(y, inputs[0], grad, retain_graph=True)),
        milliseconds(lambda: F.conv2d(grad, weight.flip(2, 3), **options)),
        milliseconds(lambda: torch.autograd.grad(y, inputs[1], grad, retain_graph=True)),
    ]


@command
def main() -> None:
    args = bench_parser(__doc__, batch_size=128, amp="bf16").parse_args()
    device = tuned_device()
    print(f"{heading(device, args)}; milliseconds\n")
    kinds = "forward", "gradient of the input", "the same as a forward convolution", "gradient of the weight"
    print(head("map", *kinds))
    for side, channels in MAPS:
        found = times(args.batch_size, side, channels, device, AMP_DTYPES[args.amp])
        print(row(f"{side} x {side} x {channels}", *(f"{time:.2f}" for time in found)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
