"""Show what a training step waits for, from the trace that ``profile=true`` writes to a run's folder.

python train.py experiment=quickstart name=traced max_steps=12 profile=true
python scripts/read_profile.py outputs/traced

Exits with 1 if more than --limit percent of the time is spent waiting for data. With a GPU, only time in which the host
waits for data and the GPU is idle counts.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.errors import UserError
from engine.measuring.trace import TRACE, StepTimes, read_trace
from scripts.common.command_line import command, parser_of


def report(times: StepTimes) -> str:
    """Return the times as text, one per line."""
    rest = 1 - sum(times.shares.values())
    lines = [f"{times.milliseconds:.1f} ms a step, {times.steps} steps"]
    lines += [f"{share:6.1%}  {part}" for part, share in (times.shares | {"rest": rest}).items()]
    if times.kernels is not None and times.device_idle is not None and times.device_starved is not None:
        lines.append(f"{times.kernels:6.0f}  kernels and copies of the GPU in a step")
        lines.append(f"{times.device_idle:6.1%}  of the time the GPU does nothing,")
        lines.append(f"{times.device_starved:6.1%}  of the time because the host waits for data")
    return "\n".join(lines)


@command
def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("run", type=Path, help="directory of a run, or a trace")
    parser.add_argument("--limit", type=float, default=5.0, help="percent of a step that may be spent waiting for data")
    args = parser.parse_args()
    try:
        times = read_trace(args.run / TRACE if args.run.is_dir() else args.run)
    except ValueError as error:
        raise UserError(str(error)) from error
    print(report(times))
    waits = times.shares["data wait"] if times.device_starved is None else times.device_starved
    if 100 * waits <= args.limit:
        print(f"a step does not wait for data (limit {args.limit:g} %)")
        return 0
    print(f"a step waits for data for {waits:.1%} of its time (limit {args.limit:g} %): see data_wait in the run's log")
    return 1


if __name__ == "__main__":
    sys.exit(main())
