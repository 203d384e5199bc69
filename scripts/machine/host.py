"""Cores, memory, limits and disks of this machine."""

import os
import random
import resource
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile

from data.backends.workers import REMEDY, free_memory, shared_bytes
from engine.device import default_workers
from scripts.machine.row import TRAINED, Row, verdict

CORES = 8  # for each GPU
BATCH, EVALUATED = 1024, 128  # images that all processes train on at once, and that each evaluates, by default
PIXELS = 3 * 224 * 224  # bytes of an image for the model
FILES = 2048  # that a process may open: as many as 512 shards for each of two splits, and as many again for the rest
SAMPLE = 512  # files of the data set that are read
PIECE = 4 * 2**20  # bytes that are read of each at most; shards are larger
IMAGE = 110_000  # bytes of an image of ImageNet, on average
READERS = 16  # threads
WRITTEN = 64 * 2**20  # bytes
CHECKPOINT = 0.5e9  # bytes: weights, moments and average of a model of 30 M parameters


def cores(gpus: int, allowed: float | None = None) -> Row:
    """Judge the number of cores that this process may use."""
    count = len(os.sched_getaffinity(0))
    if (allowed := quota() if allowed is None else allowed) < count:
        workers = max(1, int(allowed / max(1, gpus)))
        advice = f"a run starts a thread for each core, and these are then held up: set max_workers={workers}"
        return Row("CPU cores", f"{count}, but a quota of {allowed:g}", "warn", f"{advice}, or get more")
    if gpus == 0:
        return Row("CPU cores", str(count))
    advice = f"get {CORES} for each GPU: they read and decode its images and start its kernels"
    return Row("CPU cores", f"{count}, {count / gpus:.1f} for each GPU", verdict(count / gpus, CORES), advice)


def quota(file: Path = Path("/sys/fs/cgroup/cpu.max")) -> float:
    """Return how many cores' time the container may use (cgroup v2); infinite without a limit."""
    try:
        most, period = file.read_text(encoding="ascii").split()
    except OSError:
        return float("inf")
    return float("inf") if most == "max" else int(most) / int(period)


def shared_memory(gpus: int, free: float | None = None) -> Row:
    """Judge the free shared memory by what the data workers of the torch backend and NCCL put there."""
    free = free_memory() if free is None else free
    processes = max(1, gpus)
    images = BATCH + EVALUATED * processes
    needed = shared_bytes(default_workers(processes), images * PIXELS)
    value = f"{free / 2**30:.1f} GiB free; data.backend=torch takes {needed / 2**30:.1f} by default, DALI none"
    return Row("shared memory", value, verdict(free, needed), REMEDY)


def open_files() -> Row:
    """Judge the limit of open files. A run raises its own limit to the most that the system allows."""
    soft, most = (limit if limit >= 0 else 2**31 for limit in resource.getrlimit(resource.RLIMIT_NOFILE))
    value = f"{soft}, can be raised to {most}" if soft < most else str(soft)
    return Row("open files (ulimit -n)", value, verdict(most, FILES), f"shards may need more: raise it to {FILES}")


def reading(root: Path | None, gpus: int) -> Row:
    """Time how fast files of the data set are read: from the disk where the system can drop them from its cache."""
    if root is None:
        advice = "set IMAGENET_DIR, or --data-root, to the folder with train/ and val/; the embedded images need none"
        return Row("data root", "not set", "missing", advice)
    if not root.is_dir():
        return Row("data root", f"{root} is not a folder", "bad", "set IMAGENET_DIR, or --data-root, to the data set")
    files = sample(root)
    if not files:
        return Row("data root", f"{root} has no files", "bad", "see docs/imagenet.md for the layouts")
    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(forget, files))
        started = time.perf_counter()
        read = list(pool.map(read_start, files))
    rate = sum(read) / (time.perf_counter() - started)
    images = rate / min(IMAGE, max(1, sum(read) / len(read)))
    value = f"{images:.0f} images/s, {rate / 1e6:.0f} MB/s from {len(files)} files in {root}"
    advice = f"an H200 trains {TRAINED}/s: use a faster disk, or pack the images into shards (docs/imagenet.md)"
    return Row("data root", value, verdict(images, TRAINED * gpus, TRAINED / 10 * gpus), advice)


def sample(root: Path) -> list[Path]:
    """Return random files of a data set, from many classes or shards, without listing all of it."""
    folder = root / "train" if (root / "train").is_dir() else root
    entries = list(folder.iterdir())
    random.shuffle(entries)  # other files each time: the last ones may still be in the cache of a file server
    files: list[Path] = []
    for entry in entries:
        few = islice(entry.iterdir(), 8) if entry.is_dir() else [entry]
        files += [file for file in few if file.is_file()]
        if len(files) >= SAMPLE:
            break
    return files[:SAMPLE]


def forget(path: Path) -> None:
    """Ask the system to drop a file from its page cache."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_start(path: Path) -> int:
    """Read the first bytes of a file and return how many they are."""
    with path.open("rb", buffering=0) as file:
        return len(file.read(PIECE) or b"")


def writing(folder: Path) -> Iterator[Row]:
    """Time how fast a file is written to the disk of the runs. The file has no name, so nothing is left behind."""
    place = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    try:
        with TemporaryFile(dir=place) as file:
            content = os.urandom(WRITTEN)
            started = time.perf_counter()
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            rate = WRITTEN / (time.perf_counter() - started)
    except OSError as error:
        yield Row("output folder", f"{folder} cannot be written ({error.strerror})", "bad", "set another output_dir=")
        return
    advice = f"a checkpoint of {CHECKPOINT / 1e9:g} GB takes {CHECKPOINT / rate:.0f} s: set output_dir= to another disk"
    yield Row("output folder", f"{rate / 1e6:.0f} MB/s written to {folder}", verdict(rate, 100e6, 10e6), advice)
    free = shutil.disk_usage(place).free
    value = f"{free / 2**30:.0f} GiB free for {folder}"
    yield Row("output space", value, verdict(free, 20e9, 2e9), "checkpoints need more: set output_dir= to another disk")
