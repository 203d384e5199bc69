"""Send a whole run to Weights & Biases: every line of its metrics once, its pictures, and its options.

python scripts/upload_wandb.py outputs/NAME
python scripts/upload_wandb.py outputs/NAME --project coldstart --offline

It reads the run's ``metrics.jsonl``, which has every step once, however often the run was killed and resumed. So it
serves a run that was trained without W&B, or whose offline files are incomplete or lost. It always makes a new W&B run.
To send the offline files of a run that has them, ``wandb sync`` is enough.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.callbacks.logger_lines import best_top1, lines_so_far, tagged
from engine.credentials import refuse_secrets
from engine.errors import UserError, reason
from engine.options.plain import flatten
from engine.run_dir import RunDirectory
from scripts.common.command_line import command, parser_of

PICTURES = ("batch", "val_batch", "stability")
LONGEST_END = 600.0  # seconds that a server may take for what it has not taken yet when everything is logged


def upload(directory: RunDirectory, settings: dict[str, Any]) -> str:
    """Send a run.

    Args:
        directory: the directory of the run.
        settings: further arguments of ``wandb.init``.

    Returns:
        Where the run is: its address, or the folder of its files if ``mode`` is ``offline``.

    Raises:
        UserError: if there is no such run, or W&B does not take it.
    """
    lines = sorted(lines_so_far(directory), key=lambda line: line["step"])
    if not lines:
        raise UserError(f"{directory.path} is not a run with metrics: give the folder that holds its metrics.jsonl")
    if not directory.config.is_file():
        raise UserError(f"{directory.path} has lost its config.yaml: start the run once more, which writes it again")
    config = directory.settings()
    refuse_secrets(flatten(config).items())  # somebody may have written one, or ${oc.env:NAME}, into config.yaml
    try:
        os.makedirs(settings["dir"], exist_ok=True)
    except OSError as error:
        raise UserError(f"{settings['dir']} cannot be written ({error.strerror}): leave --offline out") from error
    import wandb  # the import takes seconds

    usual = wandb.Settings(silent=True, finish_timeout=LONGEST_END, finish_timeout_raises=True)
    try:
        run = wandb.init(name=str(config.get("name")), config=config, settings=usual, **settings)
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        best = None
        for line in tqdm(lines, desc="upload", unit=" lines", disable=None, leave=False):
            run.log(tagged(line) | {"step": line["step"]})
            best = best_top1(best, line)
        for name in PICTURES:
            if (path := directory.plots / f"{name}.png").exists():
                run.log({name: wandb.Image(str(path)), "step": lines[-1]["step"]})
        if best is not None:
            run.summary.update({"best_top1": best})
        run.finish()
    except (wandb.Error, OSError, ValueError, SystemExit) as error:  # SystemExit: wandb's service has failed
        raise UserError(
            f"Weights & Biases does not take the run ({reason(error)}): --offline writes its files here"
        ) from error
    return str(Path(run.dir).parent if run.offline else run.url)


@command
def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--project", help="default: that of the run's options")
    parser.add_argument("--entity", help="user or team")
    parser.add_argument("--group")
    parser.add_argument("--offline", action="store_true", help="write files for 'wandb sync' into RUN/uploaded/wandb")
    args = parser.parse_args()
    directory = RunDirectory(args.run)
    options = directory.settings().get("logger", {}) if directory.config.is_file() else {}
    settings = {name: getattr(args, name) or options.get(name) for name in ("project", "entity", "group")}
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.run / "uploaded" if args.offline else Path(scratch)
        mode = {"mode": "offline" if args.offline else "online", "dir": str(folder)}
        print(f"uploaded {args.run} to {upload(directory, settings | mode)}")


if __name__ == "__main__":
    sys.exit(main())
