"""Every path that a user sets, in one place: ``~`` stands for the home folder, and what is no path is refused."""

import os
from typing import Any

from omegaconf import DictConfig, OmegaConf

from engine.errors import UserError
from engine.options import declared

LONGEST_PATH = 3840  # bytes: the system's 4096 with room for what lies below
LONGEST_NAME = 255  # bytes in the name of a file or folder


def resolve_paths(composed: DictConfig) -> None:
    """Put the home folder in place of ``~``, and make absolute what a later start must find from another folder.

    The options are those whose field has ``metadata={"path": …}``. Variables such as ``$HOME`` are not expanded: the
    shell does that, and ``${oc.env:HOME}``.

    Raises:
        UserError: if a path is empty, too long, or begins with the ``~`` of an unknown user.
    """
    for key, option in declared(OmegaConf.get_type(composed)).items():
        if option.rules.path is None:
            continue
        value = OmegaConf.select(composed, key, default=None)
        if value is None or (key == "resume" and not value.endswith(".pt")):
            continue
        if value == "" and _is_interpolated(composed, key):  # an empty environment variable counts as none
            OmegaConf.update(composed, key, None)
            continue
        OmegaConf.update(composed, key, resolved(key, value, option.rules.path == "absolute"))


def resolved(key: str, value: str, absolute: bool = False) -> str:
    """A path with its home folder; ``key`` is its option, for errors."""
    if value.strip() == "":
        raise UserError(f"{key} is empty: leave it out, or set it to a path")
    if "${" in value:
        raise UserError(f"{key}={value} cannot hold '${{', which stands for the value of another option")
    if "://" in value:
        raise UserError(f"{key}={value} is an address: download the file, and set {key} to where it lies")
    path = os.path.expanduser(value)
    if path.startswith("~"):
        user = value[1:].split("/")[0]
        raise UserError(f"{key}={value}: there is no user {user}; type ./{value} for a folder of that name")
    longest = max(len(os.fsencode(name)) for name in path.split("/"))
    if longest > LONGEST_NAME or len(os.fsencode(os.path.abspath(path))) > LONGEST_PATH:
        raise UserError(
            f"{key}={value[:40]}… is too long: a path has {LONGEST_PATH} bytes at most, a name in it {LONGEST_NAME}"
        )
    return os.path.abspath(path) if absolute else path


def _is_interpolated(composed: DictConfig, key: str) -> bool:
    group, _, leaf = key.rpartition(".")
    node: Any = OmegaConf.select(composed, group) if group else composed
    return OmegaConf.is_interpolation(node, leaf)
