"""Check whether this machine is ready to train, in about two minutes. Run it first on a new machine.

python scripts/check_machine.py --data-root /path/to/imagenet

It prints a line for each check: the verdict, what was checked, what was found, and what to do about it. The verdicts:

ok       fine
missing  this machine does not have it, and some runs do without
warn     costs speed, or a run may meet it later
bad      stops a run or slows it badly

It exits with 1 if anything is bad, else with 0. A machine without a GPU is fine to try things. The last checks train a
small model for three steps in a temporary folder, and resume it. --compile trains another one compiled in 16 bits, as
ImageNet is trained on GPUs, which takes minutes more.
"""

import os
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.common.command_line import command, parser_of

# The processes that test the links between GPUs import this file, too. So the checks are imported inside the functions.


def checks(data_root: Path | None, output_dir: Path, compiles: bool) -> dict[str, Callable[[], Iterable]]:
    """Return the checks in their order, with the names that their errors get."""
    import torch

    from scripts.machine import decoding, gpu, host, run, versions

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {
        "versions": versions.check,
        "GPU": gpu.usable,
        **{f"GPU {number}": partial(gpu.one, number) for number in range(gpus)},
        **({"all-reduce": partial(gpu.exchange, gpus)} if gpus > 1 else {}),
        "CPU cores": lambda: [host.cores(gpus)],
        "shared memory": lambda: [host.shared_memory(gpus)],
        "open files": lambda: [host.open_files()],
        "data root": lambda: [host.reading(data_root, gpus)],
        "output folder": partial(host.writing, output_dir),
        "DALI decoding": decoding.check,
        "run": partial(run.check, compiles),
    }


@command
def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--data-root", metavar="DIR", default=os.environ.get("IMAGENET_DIR"), help="else $IMAGENET_DIR")
    parser.add_argument("--output-dir", metavar="DIR", default="outputs", help="the folder of the runs, outputs")
    parser.add_argument("--compile", action="store_true", help="also train a compiled model, which takes minutes")
    args = parser.parse_args()
    root = Path(args.data_root).expanduser() if args.data_root else None
    try:
        from scripts.machine.row import rows_of

        all_checks = checks(root, Path(args.output_dir).expanduser(), args.compile)
    except ModuleNotFoundError as error:
        sys.exit(f"error: {error}: run `make setup`, then `make check` (or use .venv/bin/python)")
    bad = 0
    for name, check in all_checks.items():
        for row in rows_of(name, check):
            print(row, flush=True)
            bad += row.verdict == "bad"
    print(f"\n{bad} of these are bad: they stop a run or slow it badly" if bad else "\nnone of these stops a run")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
