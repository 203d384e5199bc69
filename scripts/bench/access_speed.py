"""Compare reading single images in random order: from parquet files in place, and from the same images in other forms.

python scripts/bench/access_speed.py --parquet DIR --root DIR [DIR …] --split train

A parquet file is read a row group at a time; the groups are those that Hugging Face's package wrote. All forms take
turns, in one process with one thread, and the table gives medians.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data import DataConfig, DataError, EncodedSource, open_source
from data.sources.file_sets import complete_set, file_set
from scripts.bench.training_step import ratio
from scripts.common.command_line import command, existing_folder, parser_of, positive
from scripts.common.tables import head
from scripts.common.tables import row as line

Reader = Callable[[int], bytes]


def parquet_reader(root: Path, split: str) -> tuple[Reader, int]:
    """A function that reads the image of a row, and the number of rows."""
    import pyarrow.parquet

    if file_set(root, split, ".parquet") is None:
        raise DataError(f"{root} holds no parquet files of {split}")
    files = [pyarrow.parquet.ParquetFile(path) for path in complete_set(root, split, ".parquet")]
    groups = [(file, group) for file in files for group in range(file.num_row_groups)]
    ends = np.cumsum([file.metadata.row_group(group).num_rows for file, group in groups])

    def read(row: int) -> bytes:
        place = int(np.searchsorted(ends, row, side="right"))
        file, group = groups[place]
        column = file.read_row_group(group, columns=["image"]).column(0)
        return column[row - (int(ends[place - 1]) if place else 0)].as_py()["bytes"]

    return read, int(ends[-1])


def source_reader(root: Path, split: str) -> tuple[Reader, int, str]:
    """The same for the form that ``data.root`` has, and the name of that form."""
    source = open_source(DataConfig(name="any", root=str(root)), split)
    assert isinstance(source, EncodedSource)
    return source.read, len(source), source.layout


@command
def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--parquet", type=existing_folder, required=True, metavar="DIR", help="folder of parquet files")
    parser.add_argument(
        "--root", type=existing_folder, required=True, nargs="+", metavar="DIR", help="other forms of the images"
    )
    parser.add_argument("--split", default="train")
    parser.add_argument("--images", type=positive, default=300, help="read in each turn; default: 300")
    parser.add_argument("--repeats", type=positive, default=7, help="turns; default: 7")
    args = parser.parse_args()
    readers: dict[str, tuple[Reader, int]] = {"parquet": parquet_reader(args.parquet, args.split)}
    for root in args.root:
        read, count, layout = source_reader(root, args.split)
        readers[layout] = (read, count)
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    for turn in range(args.repeats):
        for name, (read, count) in readers.items():
            rows = np.random.default_rng(turn).integers(count, size=args.images).tolist()
            begin = perf_counter()
            for row in rows:
                read(row)
            seconds[name].append((perf_counter() - begin) / args.images)
    print(head("form", "ms an image", "against parquet"))
    for name, times in seconds.items():
        print(line(name, f"{1000 * median(times):.3f}", f"{ratio(seconds['parquet'], times):.1f} ×"))


if __name__ == "__main__":
    sys.exit(main())
