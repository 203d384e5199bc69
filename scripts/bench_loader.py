"""Time the data backends against each other on the same images, in one run.

python scripts/bench_loader.py --root /path/to/images --split val
python scripts/bench_loader.py --root /path/to/images /path/to/the/same/in/shards --split val

Each backend reads the same training crops in turn, several times; the table gives the median of images a second and
the ratio to the first. With more than one root the same is done for each. The winner on a CPU is what
``data.backend=auto`` means there (``data/backends/__init__.py``).
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from statistics import median

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data import AugmentConfig, BatchGeometry, DataConfig, TrainPlan, build_backend, open_split
from data.crops import Crops


def requests(plan: TrainPlan, batches: int) -> Iterator[Crops]:
    """Training crops, epoch after epoch."""
    steps = (plan.crops(*place) for step in range(batches) for place in plan.positions(step))
    return islice(steps, batches)


def images_per_second(kind: str, cfg: DataConfig, plan: TrainPlan, workers: int, batches: int) -> float:
    """Speed of a backend after its first two batches."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backend = build_backend(kind, plan.index, cfg, device, workers, plan.geometry.batch_size)
    stream = backend.batches(requests(plan, batches + 2))
    next(stream), next(stream)
    started, images = time.perf_counter(), 0
    for batch in stream:
        images += len(batch)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return images / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, nargs="+", help="image folders or packed sets of the same images")
    parser.add_argument("--split", default="train")
    parser.add_argument("--index-dir", help="where the index lies, if not in the root")
    parser.add_argument("--crop", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--batches", type=int, default=20, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    cfgs = [
        DataConfig(name="folder", root=r, crop=args.crop, resize=args.crop, index_dir=args.index_dir) for r in args.root
    ]
    sets = [open_split(cfg, args.split) for cfg in cfgs]
    geometry = BatchGeometry(min(args.batch_size, len(sets[0])), mix_group=1)
    plans = [TrainPlan(images.index, 0, cfg, AugmentConfig(), geometry) for images, cfg in zip(sets, cfgs, strict=True)]
    cases = [
        (f"{kind}, {'folder' if plan.index.shards is None else 'shards'}", kind, cfg, plan)
        for kind in ("torch", "dali")
        for cfg, plan in zip(cfgs, plans, strict=True)
    ]
    speeds: dict[str, list[float]] = {case[0]: [] for case in cases}
    for name, kind, cfg, plan in tqdm(cases * args.repeats, disable=None, leave=False):
        speeds[name].append(images_per_second(kind, cfg, plan, args.workers, args.batches))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{len(sets[0])} images, crop {args.crop}, batch {geometry.batch_size}, {args.workers} workers, {device}")
    print(f"{'backend':14} {'images/s':>9} {'least':>7} {'most':>7} {'ratio':>7}")
    for name, found in speeds.items():
        ratio = median(a / b for a, b in zip(found, speeds[cases[0][0]], strict=True))
        print(f"{name:14} {median(found):9.0f} {min(found):7.0f} {max(found):7.0f} {ratio:7.2f}")


if __name__ == "__main__":
    main()
