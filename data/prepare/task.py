"""Prepares a data set split by split: writes it, indexes it, checks it, and reports the result."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from data.config import DataConfig
from data.errors import DataError
from data.prepare.check import check_images, report_file
from data.prepare.ground_truth import validation_classes
from data.prepare.jobs import run_jobs
from data.prepare.originals import (
    Split,
    flat_val_folder,
    image_folder,
    is_flat,
    official_train,
    official_val,
    split_folder,
)
from data.prepare.parquet import parquet_target, write_tar
from data.prepare.shard_index import read_shard, shards_in, write_packed_index
from data.prepare.target import Target, refuse_full
from data.prepare.writing import Written, remove_partial, write_class_folder, write_shard
from data.sources import EncodedSource, open_source, source_kind
from data.sources.folder import FolderSource
from data.sources.shards import PACKED_INDEX

T = TypeVar("T")

OFFICIAL_IMAGES = {"train": 1_281_167, "val": 50_000}
WRITERS = {"folder": write_class_folder, "shards": write_shard, "tars": write_tar}  # of a part, by the target's layout
MOST_NAMES = 20  # of images of one kind in the printed report


@dataclass(frozen=True)
class Task:
    """What to prepare, and how.

    Attributes:
        tars: folder of the official tar files. Exactly one of ``tars``, ``folder`` and ``parquet`` is given.
        folder: an image folder.
        to: where the prepared set is written; ``None`` leaves the folder where it is.
        layout: ``folder``, ``shards``, ``tars`` (from parquet files), or ``keep``, which copies nothing.
        splits: names of the splits.
        workers: number of processes.
        val_labels: a list of the classes of the official validation images.
        shorter_side: most pixels of an image's shorter side; ``None`` keeps the bytes of every image.
        shard_size: approximate bytes of a shard.
        check: whether to decode every image once.
        parquet: folder of parquet files.
        image_column: name of the column of images in parquet files.
        label_column: name of the column of labels.
    """

    tars: Path | None
    folder: Path | None
    to: Path | None
    layout: str
    splits: list[str]
    workers: int
    val_labels: Path | None = None
    shorter_side: int | None = None
    shard_size: int = 10**9
    check: bool = False
    parquet: Path | None = None
    image_column: str = "image"
    label_column: str = "label"

    @property
    def source(self) -> Path:
        """The folder with the images as they are now."""
        source = self.tars or self.folder or self.parquet
        assert source is not None
        return source

    @property
    def root(self) -> Path:
        """Folder of the prepared set."""
        root = self.to if self.to is not None else self.folder
        assert root is not None
        return root

    @property
    def data(self) -> DataConfig:
        """How the prepared set is opened."""
        return DataConfig(name="folder", root=str(self.root), on_bad_image="skip")


@dataclass
class Result:
    """The result of a task: lines to print, and the number of bad images that a check found."""

    report: list[str] = field(default_factory=list)
    bad: int = 0


def prepare(task: Task) -> Result:
    """Do a task, or the rest of it if an earlier attempt was interrupted.

    Raises:
        DataError: if it cannot be done as requested; parts that are already written are kept.
    """
    _refuse(task)
    targets = {} if task.layout == "keep" else {name: _target(task, name) for name in task.splits}
    if task.shorter_side is None:  # otherwise the size of the result is not known before
        refuse_full(task.root, list(targets.values()))
    result = Result()
    for name in task.splits:
        written = _keep(task, name) if task.layout == "keep" else _write(targets[name], task.workers)
        source = open_source(task.data, name)
        assert isinstance(source, EncodedSource)
        result.report += _report(task, name, source, written)
        if task.tars is not None and len(source) != OFFICIAL_IMAGES[name]:
            result.report.append(f"  the official {name} images are {OFFICIAL_IMAGES[name]}: some are missing")
        if task.check:
            found = check_images(source, task.workers)
            file = report_file(source)
            file.write_text(found.report(name) + "\n", encoding="utf-8", errors="backslashreplace")
            result.report += [found.report(name, MOST_NAMES), f"  the full report is in {file}"]
            result.bad += len(found.bad)
    return result


def _refuse(task: Task) -> None:
    """Raise if the options contradict one another."""
    if task.parquet is not None and task.to is None:
        raise DataError("--parquet needs --to DIR, where the tar files are written")
    if task.layout == "keep":
        if task.folder is None or task.to is not None:
            raise DataError(
                "--layout keep needs --folder and cannot have --to: it indexes and checks the folder in place"
            )
        if task.shorter_side is not None:
            raise DataError("--shorter-side needs --to and --layout folder or shards: the source is never changed")
    elif task.to is None:
        raise DataError(f"--layout {task.layout} needs --to DIR, where the prepared set is written")
    if (task.layout == "tars") != (task.parquet is not None):
        raise DataError("--parquet writes tar files of a WebDataset: leave --layout out")
    source = task.source
    if not (source.is_dir() or (task.layout == "keep" and source.is_file())):
        raise DataError(f"{source} is not a folder")
    if task.folder is not None and task.to is not None:
        sources = {(task.folder / name).resolve() for name in task.splits}
        targets = [(task.to / name).resolve() for name in task.splits]
        if any(not sources.isdisjoint((target, *target.parents)) for target in targets):
            raise DataError(f"--to {task.to} is inside the source, which is never changed: choose another folder")
    if task.tars is not None and (other := set(task.splits) - {"train", "val"}):
        raise DataError(f"the official tar files have no split '{min(other)}': set --splits train,val")


def _target(task: Task, name: str) -> Target:
    folder = task.root / name
    if task.parquet is not None:
        columns = (task.image_column, task.label_column)
        return parquet_target(task.parquet, name, folder, task.shorter_side, *columns)
    split = _source(task, name)
    if task.layout == "shards":
        return Target.shards(folder, split, task.shorter_side, task.shard_size)
    return Target.folders(folder, split, task.shorter_side)


def _source(task: Task, name: str) -> Split:
    if task.folder is not None:
        folder = task.folder / name
        if name == "val" and is_flat(folder):
            return flat_val_folder(folder, validation_classes(task.val_labels, task.folder))
        return image_folder(task.folder, name)
    assert task.tars is not None
    if name == "train":
        return official_train(task.tars)
    return official_val(task.tars, validation_classes(task.val_labels, task.tars))


def _keep(task: Task, name: str) -> list[Written]:
    """Index shards that have no index. Any other source builds its index when it is opened."""
    folder = task.root / name
    if source_kind(task.data, name) is FolderSource:
        split_folder(task.root, name)  # raises the message of this command if the folder is missing
    if not (folder / PACKED_INDEX).exists() and (shards := shards_in(folder)):
        jobs, sizes = [partial(read_shard, shard) for shard in shards], [shard.stat().st_size for shard in shards]
        write_packed_index(folder, _run(jobs, sizes, f"index {name}", task.workers))
    return []


def _write(target: Target, workers: int) -> list[Written]:
    """Write a split. The first result holds what the source left out, the others what each job wrote."""
    jobs = [partial(WRITERS[target.layout], part, target.shorter_side) for part in target.parts]
    with target.begun():
        remove_partial(target.folder)
        done = _run(jobs, [part.size for part in target.parts], f"write {target.split.name}", workers)
        if target.layout == "shards":
            write_packed_index(target.folder, [written.rows for written in done if written.rows is not None])
    return [Written(target.split.left_out), *done]


def _run(jobs: Sequence[Callable[[], T]], sizes: list[int], label: str, workers: int) -> list[T]:
    """Run the jobs with a progress bar of their bytes, and return their results in order."""
    results: dict[int, T] = {}
    with tqdm(total=sum(sizes), desc=label, unit="B", unit_scale=True, disable=None, leave=False) as bar:
        for number, result in run_jobs(jobs, workers):
            results[number] = result
            bar.update(sizes[number])
    return [results[number] for number in range(len(jobs))]


def _report(task: Task, name: str, source: EncodedSource, written: list[Written]) -> list[str]:
    index = source.index
    size = "" if index.lengths is None else f"{index.lengths.sum() / 1e9:.3f} GB, "
    what = f"{len(index)} images of {len(index.classes)} classes"
    parts = "tar files" if task.parquet is not None else "shards or class folders"
    lines = [f"{name}: {what}, {size}in {source.layout}: {source.place}"]
    if kept := sum(part.kept for part in written):
        lines.append(f"  {kept} of {len(written) - 1} {parts} had been written before")
    if left_out := index.bad + [entry for part in written for entry in part.left_out]:
        lines += [f"  {len(left_out)} files left out:", *(f"    {entry}" for entry in left_out)]
    return lines
