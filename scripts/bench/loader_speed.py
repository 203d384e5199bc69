"""Compare the speed of data loaders on the same images: our backends, timm's and torchvision's.

python scripts/bench/loader_speed.py --root /path/to/images [/path/to/the/same/packed] --split val

There are two recipes: `plain` is crop, flip and normalisation; `full` adds RandAugment (rand-m9-mstd0.5-inc1), random
erasing, mixup and cutmix. The rows `floor` time only the decoding. The loaders take turns, each time in a new process,
and the table gives medians. With a GPU, batches are copied to it, and DALI decodes on it with several values of
hw_decoder_load. ``data.backend=auto`` means the winner (``data/backends/__init__.py``).
"""

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, set_start_method
from pathlib import Path
from statistics import median

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data import DataConfig, open_split
from engine.device import device_name, tune
from scripts.bench.loaders import FLOORS, LOADERS, Setting
from scripts.bench.options import bench_parser
from scripts.bench.training_step import ratio, wait_for
from scripts.common.command_line import command, existing_folder, positive
from scripts.common.tables import head, row

HW_LOADS = (0.0, 0.4, 0.9, 1.0)  # shares of the hardware decoder to try on a GPU, beside the default
WARM = 6  # batches before the speed is measured; the time to the first batch is measured separately
Found = dict[tuple[str, str], list[tuple[float, float]]]  # by label and recipe: what `timed` returns, each time


def timed(name: str, setting: Setting) -> tuple[float, float]:
    """Return the images per second after the first batches, and the seconds to the first. Runs in a new process."""
    # This process was spawned, so by default the loaders of timm and torchvision would spawn their workers, too. That
    # takes seconds and would distort the comparison.
    set_start_method("fork", force=True)
    torch.set_num_threads(setting.workers)
    tune(setting.device)  # as training does
    if setting.device.type == "cuda":
        torch.cuda.init()
    begun = time.perf_counter()
    stream = (LOADERS | FLOORS)[name](setting)
    next(stream)
    first = time.perf_counter() - begun
    for _ in range(WARM - 1):
        next(stream)
    begun, images = time.perf_counter(), 0
    for batch in stream:
        images += len(batch)
    wait_for(setting.device)
    return images / (time.perf_counter() - begun), first


def measured(name: str, setting: Setting) -> tuple[float, float]:
    """Call :func:`timed` in a new process, so that one loader's memory and threads cannot slow down the next."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(timed, name, setting).result()


def settings_of_rows(args: argparse.Namespace, roots: list[str], batch_size: int) -> dict[tuple[str, str], Setting]:
    """Return the setting of each row of the table, by label and recipe. A label begins with the loader's name."""
    folder, *packed = roots
    common = (args.split, args.index_dir, args.crop, batch_size, args.batches + WARM, args.workers)
    found = {}
    for recipe in args.recipes:
        full = recipe == "full"
        for name in (name for name in args.loaders if name in LOADERS):
            found[name, recipe] = Setting(folder, *common, full)
        for name in (name for name in args.loaders if name.startswith("ours")):
            for root in packed:
                found[f"{name}, {Path(root).name}", recipe] = Setting(root, *common, full)
        if torch.cuda.is_available() and "ours, dali" in args.loaders:
            for load in HW_LOADS:
                found[f"ours, dali, hw_decoder_load={load}", recipe] = Setting(folder, *common, full, load)
    for name in (name for name in args.loaders if name in FLOORS):
        found[name, "floor"] = Setting(folder, *common)
    return found


def print_table(found: Found, workers: int) -> None:
    """Print a row for each loader and recipe."""
    print(head("recipe", "loader", "images/s", "least", "most", "per core", "times timm", "first batch, s"))
    for (name, recipe), results in found.items():
        speeds, firsts = zip(*results, strict=True)
        yardstick = [speed for speed, _ in found.get(("timm", recipe), ())]
        numbers = median(speeds), min(speeds), max(speeds), median(speeds) / workers
        against = f"{ratio(speeds, yardstick):.2f}" if yardstick else ""
        print(row(recipe, name, *(f"{number:.0f}" for number in numbers), against, f"{median(firsts):.1f}"))


@command
def main() -> None:
    parser = bench_parser(__doc__, batch_size=64)
    parser.add_argument(
        "--root", required=True, nargs="+", type=existing_folder, help="an image folder, and others for our backends"
    )
    parser.add_argument("--split", default="train")
    parser.add_argument("--index-dir", help="where the index lies, if not in the root")
    parser.add_argument("--recipes", nargs="+", choices=["plain", "full"], default=["plain", "full"])
    parser.add_argument("--loaders", nargs="+", choices=[*LOADERS, *FLOORS], default=[*LOADERS, *FLOORS])
    parser.add_argument("--crop", type=positive, default=224)
    parser.add_argument("--batches", type=positive, default=30, help="of each measurement")
    parser.add_argument("--repeats", type=positive, default=3)
    parser.add_argument("--workers", type=positive, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    roots = [str(root) for root in args.root]
    configs = [DataConfig(name="folder", root=root, index_dir=args.index_dir) for root in roots]
    sizes = [len(open_split(config, args.split)) for config in configs]
    batch_size = min(args.batch_size, *sizes)
    settings = settings_of_rows(args, roots, batch_size)
    found: Found = {place: [] for place in settings}
    for place in tqdm([*settings] * args.repeats, disable=None, leave=False):
        loader = next(name for name in LOADERS | FLOORS if place[0].startswith(name))
        found[place].append(measured(loader, settings[place]))
    where = device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    print(f"{sizes[0]} images, crop {args.crop}, batch {batch_size}, {args.workers} workers, {where}\n")
    print_table(found, args.workers)


if __name__ == "__main__":
    sys.exit(main())
