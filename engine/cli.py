"""The command line of the entries: Hydra composes, a user's mistake becomes one line, anything else a traceback."""

import os
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data import are_threads_abandoned
from engine.config import MODEL_SCHEMA, register
from engine.errors import USER_ERRORS, RunStopped
from engine.log import flush_streams, log_to
from engine.settings import flatten

CONF = Path(__file__).resolve().parent.parent / "conf"
PATIENCE = 30.0  # seconds that other processes leave the first one to print its error

# For each entry, options that have a short form, and what it stands for.
SHORT_FORMS = {"train": {"checkpoint": "checkpoint.start"}}

Task = Callable[[DictConfig, dict[str, Any], list[str], bool], None]


def launch(config_name: str, task: Task, implied: Callable[[list[str]], list[str]] | None = None) -> None:
    """Compose the config of the command line and hand it to ``task``.

    ``task`` gets the composed config, the chosen file of each group, what the user typed, and whether this is one
    of many runs (``--multirun``, or a job array). ``implied`` gives the arguments that those typed imply. The process
    exits with 2 for a user's mistake.
    """
    register()
    sys.argv[1:] = [_in_full(argument, SHORT_FORMS.get(config_name, {})) for argument in sys.argv[1:]]
    # Hydra's own handling of errors prints several lines and exits with 1; with this it lets them pass to us.
    os.environ["HYDRA_FULL_ERROR"] = "1"

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)
    def main(cfg: DictConfig) -> None:
        hydra_cfg = HydraConfig.get()
        many = hydra_cfg.mode == RunMode.MULTIRUN or "SLURM_ARRAY_TASK_ID" in os.environ
        try:
            task(cfg, dict(hydra_cfg.runtime.choices), list(hydra_cfg.overrides.task), many)
        # Caught in here: an exception that leaves the job makes Hydra print lines of its own.
        except USER_ERRORS as error:
            _fail(str(error), 2)
        except RunStopped as stopped:
            _fail(str(stopped), stopped.exit_code, patience=1.0)
        except torch.OutOfMemoryError as error:
            _fail(f"{_first_line(error)} Set micro_batch_size lower (or eval.batch_size, in an evaluation)", 1)

    log_to(None, speaks=os.environ.get("RANK", "0") == "0")
    try:
        sys.argv += implied(sys.argv[1:]) if implied else []
        main()
        flush_streams()
    except USER_ERRORS as error:
        _fail(str(error), 2)
    except (HydraException, OmegaConfBaseException) as error:
        _fail(_explain(error, config_name), 2)
    except KeyboardInterrupt:
        _fail("interrupted", 130)


def _in_full(argument: str, short_forms: dict[str, str]) -> str:
    """An argument of the command line with a short form of an option spelt out."""
    key, equals, value = argument.partition("=")
    is_node = value.startswith("{")  # all options of a group at once
    return f"{short_forms[key]}={value}" if equals and key in short_forms and not is_node else argument


def _fail(message: str, exit_code: int, patience: float = PATIENCE) -> NoReturn:
    """Print one line, once a machine, and exit; other processes wait for the one that prints.

    torchrun ends all processes as soon as one has gone, so waiting longer than printing takes costs nothing, unless
    torchrun itself was told to stop and waits for its processes.
    """
    rank, who = os.environ.get("LOCAL_RANK", "0"), ""
    if rank != "0":
        time.sleep(patience)  # still alive after that: the first one did not have this error
        who = f" (process {os.environ.get('RANK', rank)})"
    with suppress(OSError, ValueError):  # nobody reads it; the exit status says it all the same
        print(f"error: {message}{who}", file=sys.stderr, flush=True)
    flush_streams()
    if are_threads_abandoned():  # Python would wait for them
        os._exit(exit_code)
    sys.exit(exit_code)


def _explain(error: BaseException, config_name: str) -> str:
    """Hydra's and OmegaConf's message as one line, with the nearest valid name where a name is unknown."""
    message = f"{error}\n{error.__cause__ or ''}"
    if match := re.search(r"Could not override '([^']+)'|Key '([^']+)' (?:is )?not in", message):
        return _unknown_key(match[1] or match[2], message, config_name)
    if match := re.search(r"Could not find '([^/']+)/([^']*)'", message):
        names = sorted(path.stem for path in (CONF / match[1]).glob("*.yaml"))
        return f"{match[1]}={match[2]} is unknown: {_nearest(match[2], names)}"
    if match := re.search(r"Value '(.*?)' .*could not be converted to (\w+)", message):
        key = re.search(r"full_key: (\S+)", message)
        typed = re.search(r"Error merging override (\S+)", message)
        name = key[1] if key else typed[1] if typed else "an option"
        return f"{name}: '{match[1]}' is no {match[2].lower()}"
    return re.sub(r"\s+", " ", ": ".join(filter(None, (str(error), _first_line(error.__cause__))))).strip()


def _first_line(error: BaseException | None) -> str:
    return str(error).split("\n", 1)[0] if error else ""


def _unknown_key(key: str, message: str, config_name: str) -> str:
    if full := re.search(r"full_key: (\S+)", message):
        key = full[1]
    return f"there is no option '{key}': {_nearest(key, sorted(_all_keys(config_name)))}"


def _nearest(name: str, names: list[str]) -> str:
    near = get_close_matches(name, names, n=3, cutoff=0.6)
    if not near:  # perhaps the right leaf under the wrong parent
        leaf = name.rsplit(".", 1)[-1]
        near = [n for n in names if n.rsplit(".", 1)[-1] == leaf][:3]
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"choose {', '.join(names)}" if len(names) < 30 else "--help lists all"


def _all_keys(config_name: str) -> set[str]:
    """Every option of an entry's config with the groups that the user chose, and every group."""
    groups = {path.name for path in CONF.iterdir() if path.is_dir()} | {MODEL_SCHEMA}
    chosen = [typed for typed in sys.argv[1:] if typed.partition("=")[0] in groups and "," not in typed]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        composed: Any = OmegaConf.to_container(hydra.compose(config_name, overrides=chosen))
    return composed.keys() | flatten(composed).keys()
