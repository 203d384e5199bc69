"""For benchmarks: the options that several of them take, and the first line of their reports."""

from argparse import ArgumentParser, Namespace
from typing import Any

import torch

from engine.device import AMP_DTYPES, device_name
from scripts.common.command_line import parser_of, positive

OPTIONS: dict[str, dict[str, Any]] = {
    "--batch-size": {"type": positive},
    "--turns": {"type": positive},
    "--amp": {"choices": tuple(AMP_DTYPES)},
    "--optim": {"choices": ("adamw", "adamw2")},
    "--compile": {"nargs": "?", "const": "default", "metavar": "MODE"},
    "--options": {"nargs": "*", "help": "options of torch's compiler to turn on"},
}


def bench_parser(description: str | None, **defaults: Any) -> ArgumentParser:
    """A parser of those of the ``OPTIONS`` that have a default here, such as ``batch_size=8``."""
    parser = parser_of(description)
    for name, default in defaults.items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, default=default, **{"help": "default: %(default)s"} | OPTIONS[option])
    return parser


def heading(device: torch.device, args: Namespace) -> str:
    """The machine, and those of the options above that a benchmark has."""
    typed = vars(args)
    parts = [device_name(device), f"torch {torch.__version__}", typed.get("amp")]
    return ", ".join(filter(None, [*parts, f"batch {args.batch_size}", typed.get("optim")]))
