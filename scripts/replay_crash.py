"""Run to a spike of the loss again, from the last checkpoint before it, with every instrument on at every step.

python scripts/replay_crash.py outputs/lipsformer_swin_tiny
torchrun --nproc-per-node=8 scripts/replay_crash.py outputs/lipsformer_swin_tiny --step 51234

RUN/crashes/step_* holds what the flight recorder wrote. Images, augmentation and noise are functions of seed and step,
so with as many processes as the run had, on the same kind of device, the very same numbers come again. The replay is a
run of its own in RUN/crashes/step_*/replay; the run itself is left as it is.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.config import TrainConfig
from engine.errors import USER_ERRORS, RunStopped, UserError
from engine.renamed import translated
from engine.run_dir import RunDirectory
from engine.training_run import train
from models import FAMILIES

NEEDED = {"step", "checkpoint_step", "processes", "family", "config", "steps"}  # of a record


def find_record(run: Path, step: int | None) -> Path:
    """The folder of the record of ``step``, or of the newest.

    Raises:
        UserError: if there is none.
    """
    found = sorted(path.parent for path in (run / "crashes").glob("step_*/record.json"))
    records = [path for path in found if path.name.removeprefix("step_").isdecimal()]  # no copies, such as step_2.bak
    if not records:
        raise UserError(f"{run} has no record of a crash: a spike of the loss leaves one in {run / 'crashes'}")
    if step is None:
        return records[-1]
    names = {int(path.name.removeprefix("step_")): path for path in records}
    if step not in names:
        raise UserError(f"{run} has no record of step {step}: choose --step {', '.join(map(str, sorted(names)))}")
    return names[step]


def read_record(place: Path) -> dict[str, Any]:
    """The record in a folder.

    Raises:
        UserError: if it is damaged.
    """
    path = place / "record.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        record = None
    if not isinstance(record, dict) or not record.keys() >= NEEDED:
        raise UserError(f"{path} is damaged: choose another record with --step, or run the training again")
    return record


def replay_settings(place: Path, record: dict[str, Any]) -> TrainConfig:
    """The run's settings, but from the record's checkpoint to its step, in a folder of their own, watched throughout.

    Raises:
        UserError: if the number of processes is not the run's.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes != record["processes"]:
        raise UserError(
            f"the run had {record['processes']} processes and this replay {processes}: use torchrun "
            f"--nproc-per-node={record['processes']} (on as many machines), for noise depends on it"
        )
    schema = OmegaConf.structured(TrainConfig(model=FAMILIES[record["family"]]()))
    config: Any = OmegaConf.merge(schema, translated(record["config"]))
    config.output_dir = str(place / "replay")
    if record["checkpoint_step"] is not None:  # else it starts as the run did, from another run's checkpoint or anew
        config.resume = str(place / "checkpoint.pt")
    config.max_steps, config.log_every = record["step"], 1
    config.checkpoint.every_steps = config.checkpoint.every_epochs = config.checkpoint.every_minutes = None
    config.monitor.every, config.monitor.history = 1, 0
    config.callbacks = {}
    settings = OmegaConf.to_object(config)
    assert isinstance(settings, TrainConfig)
    return settings


def compare(record: dict[str, Any], replayed: list[dict[str, Any]]) -> str:
    """How well the replay's losses agree with the recorded ones."""
    losses = {line["step"]: line["loss"] for line in replayed if line["split"] == "train"}
    pairs = [(line["loss"], losses[line["step"]]) for line in record["steps"] if line["step"] in losses]
    known = [(was, now) for was, now in pairs if was is not None]
    if not known:
        return "no recorded step was replayed: the crash comes in the first step after the checkpoint"
    worst = max(abs(was - now) for was, now in known)
    how = "equal bit for bit" if worst == 0 else f"the largest difference of a loss is {worst:.2g}"
    return f"{len(known)} recorded steps replayed: {how}"


def replay(run: Path, step: int | None) -> None:
    """Replay a record of a run."""
    place = find_record(run, step)
    record = read_record(place)
    settings = replay_settings(place, record)
    again = RunDirectory(place / "replay")
    if again.has_checkpoints() or again.read_metrics():
        raise UserError(f"{again.path} holds a replay: look at it, or delete it to replay anew")
    try:
        train(settings)
    except RunStopped as stopped:
        if stopped.exit_code > 128:  # by a signal
            raise
        print(stopped)  # what is not finite ends a run, here as there
    if os.environ.get("RANK", "0") == "0":
        print(compare(record, again.read_metrics()))
        print(f"readings of every step in {os.path.relpath(again.stability)}")
        print(f"drawn in                  {os.path.relpath(again.plots / 'stability.png')}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="directory of a run")
    parser.add_argument("--step", type=int, help="of the record; default: the newest")
    args = parser.parse_args()
    try:
        replay(args.run, args.step)
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunStopped as stopped:
        where = args.run / "crashes/step_*/replay"
        print(f"error: stopped before it got there: delete {where} to start it anew", file=sys.stderr)
        return stopped.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
