"""Images in shards: large tar files with an index that says where each image begins.

``scripts/prepare_imagenet.py`` writes the shards and their index.
"""

from pathlib import Path

from data.config import DataConfig
from data.errors import DataError, in_one_line
from data.index import ImageIndex
from data.index.arrays import UNREADABLE, ArrayFile
from data.index.image_index import is_of_this_version, mapped_index
from data.sources.byte_ranges import ByteRangeSource, refuse_strange_ranges
from data.sources.source import PREPARE, Advice

PATTERN = f"shard-{5 * '[0-9]'}.tar"
PACKED_INDEX = "index.npz"
MOST_SHARDS = 512  # a process may have all of them open
REMEDY = "copy it again, or remove it and repeat the command of scripts/prepare_imagenet.py that wrote it"


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:05}.tar"


class ShardSource(ByteRangeSource):
    """The images in a split's shards."""

    form = "shards"
    advice = Advice(
        at_start="repair it in the source and pack the images again",
        in_run="repair it in the source and pack the images again",
        changed="pack the images again",
    )

    @classmethod
    def fits(cls, cfg: DataConfig, split: str) -> bool:
        """See :class:`data.sources.Source`; a split fits if its folder holds shards or their index."""
        if cfg.root is None:
            return False
        folder = Path(cfg.root) / split
        return (folder / PACKED_INDEX).is_file() or next(folder.glob(PATTERN), None) is not None

    @classmethod
    def open(cls, cfg: DataConfig, split: str, build: bool = True) -> "ShardSource":
        """See :class:`data.sources.Source`."""
        folder = Path(str(cfg.root)) / split
        source = cls(folder, _index_of(folder))
        source.check(REMEDY)
        return source

    @property
    def layout(self) -> str:
        """See :class:`data.sources.Source`."""
        return f"{len(self.index.extra['shard_sizes'])} shards"

    def file(self, number: int) -> Path:
        """See :class:`data.sources.byte_ranges.ByteRangeSource`."""
        return self.place / shard_name(number)

    def files(self) -> list[Path]:
        """See :class:`data.sources.byte_ranges.ByteRangeSource`."""
        return [*super().files(), self.place / PACKED_INDEX]


def _index_of(folder: Path) -> ImageIndex:
    """The index of a split's shards.

    Raises:
        DataError: if it is missing, damaged, of another version, or not of shards.
    """
    path = folder / PACKED_INDEX
    again = f"delete it and write it again with {PREPARE} --folder {folder.parent} --splits {folder.name} --layout keep"
    try:
        file = ArrayFile(path)
        if not is_of_this_version(file):
            raise DataError(f"the index {path} was written by another version of this project: {again}")
        index = mapped_index(file)
        if index.lengths is None or not {"shard_sizes", "shard_numbers", "shard_offsets"} <= index.extra.keys():
            raise DataError(f"{path} is not an index of shards: {again}")
        refuse_strange_ranges(index)
    except FileNotFoundError as error:
        raise DataError(
            f"{folder} holds shards but no {PACKED_INDEX}: repeat the {PREPARE} command that wrote them, "
            "which continues where it stopped"
        ) from error
    except DataError:
        raise
    except UNREADABLE as error:
        raise DataError(f"the index {path} is damaged ({in_one_line(error)}): {again}") from error
    return index
