"""Train to a loss spike again, from the last checkpoint before it, and read every instrument at every step.

python scripts/replay_crash.py outputs/lipsformer_swin_tiny
torchrun --nproc-per-node=8 scripts/replay_crash.py outputs/lipsformer_swin_tiny --step 51234

The flight recorder wrote RUN/crashes/step_*. Images, augmentation and noise depend only on the seed, the step and the
process. So a replay gives exactly the same numbers if it uses as many processes as the run, on the same kind of device.
The replay is a separate run in RUN/crashes/step_*/replay. It does not change the original run.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.credentials import refuse_secrets
from engine.errors import RunStopped, UserError
from engine.options.config import TrainConfig
from engine.options.plain import flatten
from engine.options.renamed import translated
from engine.run_dir import RunDirectory
from engine.training_run import train
from models import FAMILIES
from scripts.common.command_line import command, parser_of

NEEDED = {"step", "checkpoint_step", "processes", "family", "config", "steps"}  # keys of a record


def find_record(run: Path, step: int | None) -> Path:
    """Return the folder of the record of ``step``; without ``step``, of the newest record.

    Raises:
        UserError: if there is no such record.
    """
    found = sorted(path.parent for path in (run / "crashes").glob("step_*/record.json"))
    records = [path for path in found if path.name.removeprefix("step_").isdecimal()]  # skip copies: step_2.bak
    if not records:
        raise UserError(f"{run} has no record of a crash: a spike of the loss leaves one in {run / 'crashes'}")
    if step is None:
        return records[-1]
    names = {int(path.name.removeprefix("step_")): path for path in records}
    if step not in names:
        raise UserError(f"{run} has no record of step {step}: choose --step {', '.join(map(str, sorted(names)))}")
    return names[step]


def read_record(place: Path) -> dict[str, Any]:
    """Read the record in a folder.

    Raises:
        UserError: if the record is damaged.
    """
    path = place / "record.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or not record.keys() >= NEEDED:
        raise UserError(f"{path} is damaged: choose another record with --step, or run the training again")
    return record


def replay_settings(place: Path, record: dict[str, Any]) -> TrainConfig:
    """Return the run's settings, changed for the replay.

    The replay starts from the record's checkpoint, ends at the record's step, writes to its own folder, and reads the
    instruments at every step.

    Raises:
        UserError: if the number of processes differs from the run's.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes != record["processes"]:
        raise UserError(
            f"the run had {record['processes']} processes, but this replay has {processes}: use torchrun "
            f"--nproc-per-node={record['processes']} (on as many machines), because the noise depends on it"
        )
    _refuse_what_may_harm(record["config"])
    schema = OmegaConf.structured(TrainConfig(model=FAMILIES[record["family"]]()))
    config: Any = OmegaConf.merge(schema, translated(record["config"]))
    config.output_dir = str(place / "replay")
    if record["checkpoint_step"] is not None:  # otherwise start in the same way as the run did
        config.resume = str(place / "checkpoint.pt")
    config.max_steps, config.log_every = record["step"], 1
    config.checkpoint.every_steps = config.checkpoint.every_epochs = config.checkpoint.every_minutes = None
    config.monitor.every, config.monitor.history = 1, 0
    config.callbacks = {}
    settings = OmegaConf.to_object(config)
    assert isinstance(settings, TrainConfig)
    return settings


def _refuse_what_may_harm(config: dict[str, Any]) -> None:
    """Refuse settings that would run a program or copy a secret: the record may be another person's.

    Raises:
        UserError: naming the first such setting.
    """
    options = flatten(config)
    refuse_secrets(options.items())
    for name, value in options.items():
        if name.startswith("compile_options.") and not isinstance(value, bool | int | float | None):
            raise UserError(
                f"the record sets {name}={value}, which may name a program that the compiler runs: "
                "remove it from record.json to replay without it"
            )


def compare(record: dict[str, Any], replayed: list[dict[str, Any]]) -> str:
    """Say how close the replay's losses are to the recorded ones."""
    losses = {line["step"]: line["loss"] for line in replayed if line["split"] == "train"}
    pairs = [(line["loss"], losses[line["step"]]) for line in record["steps"] if line["step"] in losses]
    known = [(was, now) for was, now in pairs if was is not None]
    if not known:
        return "no recorded step was replayed: the crash comes in the first step after the checkpoint"
    worst = max(abs(was - now) for was, now in known)
    how = "equal bit for bit" if worst == 0 else f"the largest difference of a loss is {worst:.2g}"
    return f"{len(known)} recorded steps replayed: {how}"


def replay(run: Path, step: int | None) -> None:
    """Replay the record of ``step``, or the newest, and print the comparison."""
    place = find_record(run, step)
    record = read_record(place)
    settings = replay_settings(place, record)
    again = RunDirectory(place / "replay")
    if again.has_checkpoints() or again.read_metrics():
        raise UserError(f"{again.path} holds a replay: look at it, or delete it to replay again")
    try:
        train(settings)
    except RunStopped as stopped:
        if stopped.exit_code > 128:  # stopped by a signal
            raise
        print(stopped)  # a loss that is not finite ends the replay, as it ended the run
    if os.environ.get("RANK", "0") == "0":
        print(compare(record, again.read_metrics()))
        print(f"readings of every step in {os.path.relpath(again.stability)}")
        print(f"drawn in                  {os.path.relpath(again.plots / 'stability.png')}")


@command
def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("run", type=Path, help="directory of a run")
    parser.add_argument("--step", type=int, help="of the record; default: the newest")
    args = parser.parse_args()
    try:
        replay(args.run, args.step)
    except RunStopped as stopped:
        where = args.run / "crashes/step_*/replay"
        print(f"error: the replay stopped before the crash: delete {where} to replay again", file=sys.stderr)
        return stopped.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
