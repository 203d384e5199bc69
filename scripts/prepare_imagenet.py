"""Prepare ImageNet-1K: from the official tar files, an image folder or parquet files; index it, and check it.

From the official files (ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar in one folder):

    python scripts/prepare_imagenet.py --tars DIR --to /data/imagenet --layout shards

From an image folder (train/<class>/ and val/<class>/): pack it into shards, or only index and check it in place:

    python scripts/prepare_imagenet.py --folder DIR --to /data/imagenet --layout shards
    python scripts/prepare_imagenet.py --folder DIR --layout keep --check

From the parquet files of Hugging Face, for which it writes WebDataset tar files (needs pyarrow):

    python scripts/prepare_imagenet.py --parquet DIR --to /data/imagenet

Sources are never changed. To continue an interrupted command, run it again; the result is the same. More in
docs/imagenet.md.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data.errors import DataError
from data.prepare import Task, prepare
from engine.terminal import printable
from scripts.common.command_line import parser_of, positive

UNITS = {"K": 10**3, "M": 10**6, "G": 10**9}


def size(text: str) -> int:
    """Parse a number of bytes such as 1G, 500M or 1000000."""
    number, unit = (text[:-1], UNITS[text[-1].upper()]) if text[-1:].upper() in UNITS else (text, 1)
    if not 1 <= (value := float(number) * unit) < 2**63:
        raise ValueError
    return int(value)


def parse(arguments: list[str] | None = None) -> Task:
    """Parse the command line into a task."""
    parser = parser_of(__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--tars", type=Path, metavar="DIR", help="folder of the official tar files")
    source.add_argument("--folder", type=Path, metavar="DIR", help="image folder: <split>/<class>/<image>")
    source.add_argument("--parquet", type=Path, metavar="DIR", help="folder of parquet files: <split>-*.parquet")
    parser.add_argument("--to", type=Path, metavar="DIR", help="where the prepared set is written")
    parser.add_argument("--layout", choices=("folder", "shards", "keep"), help="default: folder; without --to: keep")
    parser.add_argument("--splits", default="train,val", help="default: train,val")
    parser.add_argument("--val-labels", type=Path, metavar="FILE", help="classes of the official validation images")
    parser.add_argument("--shorter-side", type=positive, metavar="N", help="make images with a longer one smaller")
    parser.add_argument("--shard-size", type=size, default=10**9, metavar="BYTES", help="default: 1G")
    parser.add_argument("--image-column", default="image", metavar="NAME", help="of parquet files; default: image")
    parser.add_argument("--label-column", default="label", metavar="NAME", help="of parquet files; default: label")
    parser.add_argument("--workers", type=positive, default=len(os.sched_getaffinity(0)), help="processes")
    parser.add_argument("--check", action="store_true", help="decode every image once; exits with 1 if any is bad")
    args = vars(parser.parse_args(arguments))
    args["splits"] = [name for name in args["splits"].split(",") if name]
    usual = "tars" if args["parquet"] else "folder"
    args["layout"] = args["layout"] or ("keep" if args["to"] is None else usual)
    return Task(**args)


def _as_options(task: Task) -> str:
    """The options with which a training finds the prepared set."""
    root = f"data.root={task.root.resolve()}"
    others = [name for name in task.splits if name != task.data.train_split]
    return root if others == [task.data.split] or len(others) != 1 else f"{root} data.split={others[0]}"


def main() -> None:
    task = parse()
    try:
        result = prepare(task)
    except DataError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)
    print(printable("\n".join(result.report)))
    if result.bad:
        sys.exit(f"{result.bad} images are bad: repair or delete them in the source and prepare the set again")
    print(f"next: torchrun train.py model=lipsformer_swin_tiny {_as_options(task)}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted: the same command continues where it stopped", file=sys.stderr)
        sys.exit(130)
