"""Measure what a start costs with an index of ImageNet's size: time and memory of a training process and a data worker.

python scripts/bench/index_speed.py

Makes a temporary folder with the 1,000 class folders and an index of 1.28 million images that do not exist, and opens
it in new processes. The memory is the increase over the memory after the imports: all resident pages (RSS), and the
resident pages that no other process shares (private). A memory-mapped index adds to RSS, but not to private memory.
"""

import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from timm.data import ImageNetInfo

from data import AugmentConfig, BatchGeometry, DataConfig, TrainPlan, open_split
from data.index.arrays import write_arrays
from data.index.building import index_file
from data.index.headers import Header
from data.index.rows import Rows, joined_index
from data.sources import Source
from data.sources.folder import Folders
from scripts.common.command_line import command, parser_of, positive

BATCH = 1024


def made_set(root: Path, images: int) -> None:
    """Make a data set of empty class folders, and an index of many images in them."""
    folder = root / "train"
    classes = ImageNetInfo().label_names()
    rng = np.random.default_rng(0)
    rows = []
    for target, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        count = images * (target + 1) // len(classes) - images * target // len(classes)
        paths = sorted(f"{name}/{name}_{number}.JPEG" for number in rng.choice(30000, count, replace=False))
        sizes = rng.integers(200, 700, (count, 2)).tolist()
        rows.append(Rows.of(paths, [name] * count, [Header(h, w, False, h * w) for h, w in sizes]))
    names = [".", *classes]
    folders = Folders(names, [os.stat(folder / name).st_mtime_ns for name in names])
    write_arrays(index_file(root, "train", None), joined_index(rows, classes).arrays() | folders.arrays())


def memory() -> dict[str, float]:
    """Return the memory of this process in MB (10^6 bytes)."""
    fields = dict(
        line.split(":") for line in Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]
    )
    kilobytes = {name: int(value.split()[0]) for name, value in fields.items()}
    private = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
    return {name: value * 1024 / 1e6 for name, value in (("rss", kilobytes["Rss"]), ("private", private))}


def measured(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Call ``work``. Return its result, the seconds it took, and the memory it added in MB."""
    before, started = memory(), time.perf_counter()
    result = work()
    seconds = time.perf_counter() - started
    return result, {"seconds": seconds} | {name: value - before[name] for name, value in memory().items()}


def start(root: str) -> Source:
    """Do what a training process does before its first step."""
    images = open_split(DataConfig(name="imagenet", root=root), "train", 1000)
    plan = TrainPlan(images.index, 0, DataConfig(name="imagenet"), AugmentConfig(), BatchGeometry(BATCH, 32))
    plan.crops(0, range(BATCH))
    return images.source


def training_process(root: str, to_worker: Any, out: Any) -> None:
    """Start, then send the image source to a worker as PyTorch does."""
    source, cost = measured(partial(start, root))
    _, cost_of_it = measured(source.index.fingerprint)
    to_worker.send(source)
    out.send({"start, to the first batch of crops": cost, "fingerprint of the set": cost_of_it})
    to_worker.recv()


def worker(from_trainer: Any, out: Any) -> None:
    """Receive the image source, and look up many random images."""

    def take() -> Source:
        source = from_trainer.recv()
        for row in np.random.default_rng(0).integers(len(source), size=10 * BATCH).tolist():
            assert source.name(row) and source.index.heights[row] and source.index.widths[row]
        return source

    from_trainer.poll(None)
    _, cost = measured(take)
    out.send({f"data worker, {10 * BATCH} images looked up": cost})
    from_trainer.send("done")


@command
def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--images", type=positive, default=1_281_167)
    args = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as root:
        made_set(Path(root), args.images)
        size = index_file(Path(root), "train", None).stat().st_size
        trainer_end, worker_end = spawn.Pipe()
        results, out = spawn.Pipe(duplex=False)
        jobs = [spawn.Process(target=training_process, args=(root, trainer_end, out))]
        jobs += [spawn.Process(target=worker, args=(worker_end, out))]
        for job in jobs:
            job.start()
        costs = {name: cost for _ in jobs for name, cost in results.recv().items()}
        for job in jobs:
            job.join()
    print(f"{args.images} images, an index of {size / 1e6:.0f} MB")
    print(f"{'':44} {'seconds':>8} {'RSS, MB':>8} {'private':>8}")
    for name, cost in costs.items():
        print(f"{name:44} {cost['seconds']:8.2f} {cost['rss']:8.0f} {cost['private']:8.0f}")


if __name__ == "__main__":
    sys.exit(main())
