"""Resolve all paths that the user sets: expand ``~``, and refuse text that cannot be a path."""

import os
from typing import Any

from omegaconf import DictConfig, OmegaConf

from engine.errors import UserError
from engine.options.rules import declared

LONGEST_PATH = 3840  # bytes: less than the system's 4096, to leave room for the files in a run's folder
LONGEST_NAME = 255  # most bytes in the name of a file or folder


def resolve_paths(composed: DictConfig) -> None:
    """Expand ``~`` in all path options, and make a path absolute if its rule says so.

    Path options have ``metadata={"path": …}`` in their field. Variables such as ``$HOME`` are not expanded: the shell
    does that, or Hydra with ``${oc.env:HOME}``.

    Raises:
        UserError: if a path is empty, too long, an address, contains ``${``, or names an unknown user after ``~``.
    """
    for key, option in declared(OmegaConf.get_type(composed)).items():
        if option.rules.path is None:
            continue
        value = OmegaConf.select(composed, key, default=None)
        if value is None or (key == "resume" and not value.endswith(".pt")):
            continue
        if value == "" and _is_interpolated(composed, key):  # an empty environment variable: treat it as not set
            OmegaConf.update(composed, key, None)
            continue
        OmegaConf.update(composed, key, resolved(key, value, option.rules.path == "absolute"))


def resolved(key: str, value: str, absolute: bool = False) -> str:
    """Return a path with ``~`` expanded. ``key`` is the name of its option, for error messages."""
    if value.strip() == "":
        raise UserError(f"{key} is empty: leave it out, or set it to a path")
    if "${" in value:
        raise UserError(f"{key}={value} cannot hold '${{', which stands for the value of another option")
    if "://" in value:
        raise UserError(f"{key}={value} is a web address: download the file, and set {key} to its path")
    path = os.path.expanduser(value)
    if path.startswith("~"):
        user = value[1:].split("/")[0]
        raise UserError(f"{key}={value}: there is no user {user}; type ./{value} for a folder with that name")
    longest = max(len(os.fsencode(name)) for name in path.split("/"))
    if longest > LONGEST_NAME or len(os.fsencode(os.path.abspath(path))) > LONGEST_PATH:
        raise UserError(
            f"{key}={value[:40]}… is too long: a path has at most {LONGEST_PATH} bytes, a name in it {LONGEST_NAME}"
        )
    return os.path.abspath(path) if absolute else path


def _is_interpolated(composed: DictConfig, key: str) -> bool:
    group, _, leaf = key.rpartition(".")
    node: Any = OmegaConf.select(composed, group) if group else composed
    return OmegaConf.is_interpolation(node, leaf)
