"""The folder that a split is written to: its future content, a lock against other processes, and its free space."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import DataError
from data.prepare.originals import ClassImages, Split
from data.sources.shards import MOST_SHARDS, shard_name


@dataclass(frozen=True)
class Part:
    """What one job writes: a class folder or a shard from ``ClassImages``, or a tar file from one ``ParquetFile``."""

    path: Path
    sources: Sequence[Any]

    @property
    def size(self) -> int:
        """Bytes of its images, or a little more."""
        return sum(source.size for source in self.sources)


@dataclass(frozen=True)
class Target:
    """A split to be written.

    Attributes:
        folder: where it is written.
        split: its source.
        parts: the class folders, shards or tar files it will consist of.
        layout: what the parts are: "folder" (class folders), "shards" or "tars" (of a WebDataset).
        shorter_side: most pixels of an image's shorter side.
    """

    folder: Path
    split: Split
    parts: list[Part]
    layout: str
    shorter_side: int | None

    @classmethod
    def folders(cls, folder: Path, split: Split, shorter_side: int | None) -> "Target":
        """A split in class folders."""
        parts = [Part(folder / source.name, [source]) for source in split.classes]
        return cls(folder, split, parts, "folder", shorter_side)

    @classmethod
    def shards(cls, folder: Path, split: Split, shorter_side: int | None, shard_size: int) -> "Target":
        """A split in shards. Each shard takes as many whole classes as fit, but at least one.

        Raises:
            DataError: if there would be too many shards.
        """
        groups: list[list[ClassImages]] = []
        filled = 0
        for source in split.classes:
            if not groups or filled + source.size > shard_size:
                groups.append([])
                filled = 0
            filled += source.size
            groups[-1].append(source)
        if len(groups) > MOST_SHARDS:
            least = 2 * sum(source.size for source in split.classes) // MOST_SHARDS
            raise DataError(
                f"--shard-size {shard_size} makes {len(groups)} shards of {split.name}, more than {MOST_SHARDS}: "
                f"set {least} or more"
            )
        parts = [Part(folder / shard_name(number), group) for number, group in enumerate(groups)]
        return cls(folder, split, parts, "shards", shorter_side)

    @property
    def plan(self) -> str:
        """The source and the options of the split as a line of JSON; it is compared when the command is repeated."""
        parts = json.dumps([(part.path.name, [(s.name, s.size) for s in part.sources]) for part in self.parts])
        note = {
            "shards": len(self.parts) if self.layout == "shards" else None,
            "classes": len(self.split.classes),
            "shorter_side": self.shorter_side,
            "parts": hashlib.sha256(parts.encode("utf-8", "surrogateescape")).hexdigest()[:16],
        }
        return json.dumps(note) + "\n"

    @contextmanager
    def begun(self) -> Iterator[None]:
        """Create the folder, lock it against other processes, and write the plan beside it.

        Raises:
            DataError: if another plan is written there (the folder would then mix parts of both), if the folder holds
                other files, or if another process has locked it.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Over NFS, a file that is open for writing is locked for all machines, and a folder only for this one.
            descriptor = os.open(self.folder.with_name(f".{self.folder.name}.lock"), os.O_WRONLY | os.O_CREAT, 0o666)
        except OSError as error:
            raise DataError(f"cannot write {self.folder} ({error.strerror}): choose another --to") from error
        try:
            _lock(descriptor, self.folder)
            self._note()
            yield
        finally:
            os.close(descriptor)

    def _note(self) -> None:
        path = plan_file(self.folder)
        try:
            if path.is_file():
                if path.read_bytes() != self.plan.encode():
                    raise DataError(
                        f"{self.folder} was prepared from another source or with another --layout, --shorter-side or "
                        f"--shard-size: repeat that command, choose another --to, or delete {self.folder} and {path}"
                    )
            elif any(self.folder.iterdir()):
                raise DataError(f"{self.folder} holds files that this command did not write: choose another --to")
            else:
                scratch = path.with_name(f".{path.name}.tmp")
                with open(scratch, "w", encoding="utf-8") as file:
                    file.write(self.plan)
                    file.flush()
                    os.fsync(file.fileno())
                scratch.rename(path)
        except OSError as error:
            raise DataError(f"cannot write {path} ({error.strerror}): choose another --to") from error


def plan_file(folder: Path) -> Path:
    """The file with the plan of a split's folder, see :attr:`Target.plan`."""
    return folder.with_name(f"prepared-{folder.name}.json")


def refuse_full(root: Path, targets: Sequence[Target]) -> None:
    """Raise if the disk has too little space for the parts that are still missing."""
    missing = [part for target in targets for part in target.parts if not part.path.exists()]
    needed = sum(part.size for part in missing)
    existing = next(folder for folder in (root.absolute(), *root.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise DataError(
            f"{needed / 1e9:.1f} GB more are needed in {root}, where {free / 1e9:.1f} GB are free: "
            "free space or choose another --to"
        )


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DataError(f"another process is preparing {folder}: wait until it has finished") from error
    except OSError:
        pass  # a file system without locks
