"""The command line of train.py and eval.py: Hydra composes the config. A user's mistake ends in a one-line message.

Any other error shows its traceback.
"""

import faulthandler
import io
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn, cast

import hydra
import torch
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from data import are_threads_abandoned
from engine.credentials import refuse_secrets
from engine.errors import USER_ERRORS, RunStopped, UserError, lacks_host_memory, lacks_memory
from engine.log import discard, flush_streams, log_to, print_error
from engine.options.arguments import as_typed, split
from engine.options.config import CONF, ENTRIES, register
from engine.options.explain import explain, first_line
from engine.options.names import swept_options
from engine.options.rules import declared, text_options
from engine.processes.signals import raise_on_ctrl_c

PATIENCE = 30.0  # seconds that other processes wait while the first one prints its error

EXPLAINED = (*USER_ERRORS, OmegaConfBaseException, RunStopped)

# A command with one of these variables is one of many: of a job array of SLURM, or of a sweep of Weights & Biases.
SET_IN_ONE_OF_MANY = {"SLURM_ARRAY_TASK_ID", "WANDB_SWEEP_ID"}

# For each entry script: short forms, and the options they stand for.
SHORT_FORMS = {"train": {"checkpoint": "checkpoint.start"}}

Task = Callable[[DictConfig, dict[str, Any], list[str], list[str]], Callable[[], None]]


def launch(entry: str, task: Task, implied: Callable[[list[str]], list[str]] | None = None) -> None:
    """Compose the config from the command line and run ``task`` with it. A user's mistake exits with status 2.

    Args:
        entry: ``"train"`` or ``"eval"``.
        task: called with the composed config, the chosen file of each group, the options of this job, and those options
            that differ from the other jobs of a sweep or job array. It refuses mistakes in them, and returns what
            runs the job. In a sweep it is called for all jobs before the first one runs.
        implied: returns further arguments that follow from the typed ones.
    """
    register()
    # Hydra's own error handling prints several lines and exits with 1. With this variable Hydra passes exceptions on.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    jobs = _Jobs(entry, task)

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name=entry)
    def main(cfg: DictConfig) -> None:
        jobs.run(cfg)

    raise_on_ctrl_c()
    if sys.__stderr__ is not None:  # as in a command that was started without one
        faulthandler.enable(sys.__stderr__)  # a crash in a library, such as a decoder, shows where each thread was
    log_to(None, speaks=os.environ.get("RANK", "0") == "0")
    try:
        flags, options = split(sys.argv[1:])
        if any(flag.startswith(("--config-name", "-cn")) for flag in flags):
            raise UserError(f"{entry}.py reads conf/{entry}.yaml: leave out --config-name")
        jobs.typed = prepared(options, entry, implied)
        sys.argv[1:] = flags + jobs.typed
        if {"--help", "-h"} & set(flags):
            _help(main, entry)
        main()
        given = get_args_parser().parse_args(flags)
        if not (jobs.have_begun or given.cfg or given.info or given.hydra_help or given.shell_completion):
            raise UserError("the sweep has no runs: its glob(…), range(…) or list holds no value")
        if jobs.are_several:
            jobs.are_checked = True
            main()
        if jobs.failed:
            _fail(f"{len(jobs.failed)} of the runs failed: {'; '.join(jobs.failed)}", 1)
        flush_streams()
    except USER_ERRORS as error:
        _fail(str(error), 2)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        _fail(explain(error, entry, sys.argv[1:]), 2)
    except (ValueError, AssertionError, OSError) as error:
        if jobs.have_begun:
            raise
        if isinstance(error, BrokenPipeError):  # who read the output of --help has seen enough
            discard(sys.stdout)
            sys.exit(1)
        # The error is Hydra's and about the command: no job has started yet.
        _fail(explain(error, entry, sys.argv[1:]), 2)
    except KeyboardInterrupt:
        _fail("interrupted", 130)


@dataclass
class _Jobs:
    """The jobs that Hydra runs for one command: one, or with ``--multirun`` all runs of a sweep.

    Attributes:
        entry: ``"train"`` or ``"eval"``.
        task: see :func:`launch`.
        typed: the options of the command, as Hydra gets them.
        have_begun: whether Hydra has composed the config of the first job.
        are_several: whether it is a sweep.
        are_checked: whether the options of all runs of a sweep are known to be right.
        failed: for each run of a sweep that failed, the options that tell it from the others.
    """

    entry: str
    task: Task
    typed: list[str] = field(default_factory=list)
    have_begun: bool = False
    are_several: bool = False
    are_checked: bool = False
    failed: list[str] = field(default_factory=list)

    def run(self, cfg: DictConfig) -> None:
        """Run one job, or check it. Mistakes are caught here: if one left it, Hydra would print lines of its own."""
        self.have_begun = True
        job = HydraConfig.get()
        options = cast(list[str], OmegaConf.to_container(job.overrides.task))  # interpolations stay
        is_sweep = self.are_several = job.mode == RunMode.MULTIRUN
        is_check = is_sweep and not self.are_checked
        try:
            if is_sweep and "WANDB_SWEEP_ID" in os.environ:
                raise UserError("a run of a sweep of W&B cannot be a sweep itself: leave out -m and sweep=…")
            swept = swept_options(options, self.typed, is_sweep, not SET_IN_ONE_OF_MANY.isdisjoint(os.environ))
        except UserError as error:  # a mistake in the sweep itself: start none of its jobs
            _fail(str(error), 2)
        try:
            with _silent_log() if is_check else nullcontext():  # the run itself says it
                run = self.task(cfg, dict(job.runtime.choices), options, swept)
            if not is_check:
                run()
        except Exception as error:
            if not isinstance(error, EXPLAINED) and not lacks_memory(error) and not lacks_host_memory(error):
                raise
            message, exit_code = _line_and_status(error, self.entry)
            is_mistake, was_asked_to_stop = exit_code == 2, exit_code >= 128
            # A failed run does not stop a sweep. With several processes it does: they may fail at different points, and
            # would then start the next run at different times.
            if not is_sweep or is_mistake or was_asked_to_stop or "RANK" in os.environ:
                _fail(message, exit_code, patience=1.0 if isinstance(error, RunStopped) else PATIENCE)
            print_error(message)
            self.failed.append(" ".join(swept))


@contextmanager
def _silent_log() -> Iterator[None]:
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _help(main: Callable[[], None], entry: str) -> NoReturn:
    """Print Hydra's help with the rules of each option, and exit."""
    from engine.options.help import with_rules

    shown = io.StringIO()
    with redirect_stdout(shown), suppress(SystemExit):
        main()
    print(with_rules(shown.getvalue(), entry))
    flush_streams()
    sys.exit(0)


def prepared(options: list[str], entry: str, implied: Callable[[list[str]], list[str]] | None) -> list[str]:
    """Prepare options for Hydra: expand short forms, quote text and add implied options."""
    parts = (option.lstrip("+").partition("=") for option in options)
    refuse_secrets((key, value) for key, _, value in parts)
    for option in options:  # without it, an option would have the default of the code and not that of conf/
        key = option.removeprefix("~").partition("=")[0]
        if option.startswith("~") and key in declared(ENTRIES[entry]):
            raise UserError(f"{option} would remove an option: type {key}=… to change it")
    text = text_options(entry)
    options = [as_typed(_in_full(option, SHORT_FORMS.get(entry, {})), text) for option in options]
    return options + (implied(options) if implied else [])


def _in_full(argument: str, short_forms: dict[str, str]) -> str:
    """Replace the short form of an option in an argument by its full name."""
    key, equals, value = argument.partition("=")
    is_node = value.startswith("{")  # a dictionary of a group's options
    return f"{short_forms[key]}={value}" if equals and key in short_forms and not is_node else argument


def _line_and_status(error: Exception, entry: str) -> tuple[str, int]:
    """Return the one-line message for an error, and the exit code."""
    if isinstance(error, RunStopped):
        return str(error), error.exit_code
    if lacks_memory(error):
        said = first_line(error).removesuffix(".")
        return f"{said}. Set micro_batch_size lower (or eval.batch_size, in an evaluation)", 1
    if lacks_host_memory(error):
        return (
            "this machine gives the process too little memory: set micro_batch_size, eval.batch_size or max_workers "
            "lower, and see ulimit -v"
        ), 1
    return str(error) if isinstance(error, USER_ERRORS) else explain(error, entry, sys.argv[1:]), 2


def _fail(message: str, exit_code: int, patience: float = PATIENCE) -> NoReturn:
    """Print one line on each machine and exit. The other processes of the machine wait while the first one prints.

    torchrun ends all processes when one has exited, so a long ``patience`` usually costs nothing. The exception is a
    torchrun that was itself told to stop: it waits for its processes.
    """
    rank, who = os.environ.get("LOCAL_RANK", "0"), ""
    if rank != "0":
        time.sleep(patience)  # torchrun ends this process meanwhile, unless only this process has the error
        who = f" (process {os.environ.get('RANK', rank)})"
    print_error(f"{message}{who}")
    flush_streams()
    # A normal exit would wait for these threads, and for exchanges with processes that are missing.
    if are_threads_abandoned() or torch.distributed.is_initialized():
        os._exit(exit_code)
    sys.exit(exit_code)
