"""Kinds of arguments that several scripts take. A wrong one ends in argparse's line, which names the argument."""

from argparse import ArgumentTypeError
from pathlib import Path

import models


def positive(text: str) -> int:
    """Parse a whole number of 1 or more.

    Raises:
        ArgumentTypeError: if the text is no such number.
    """
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"'{text}' is not a whole number of 1 or more")
    return int(text)


def existing_folder(text: str) -> Path:
    """Parse the path of a folder that exists.

    Raises:
        ArgumentTypeError: if there is no such folder.
    """
    if not Path(text).is_dir():
        raise ArgumentTypeError(f"{text} is not a folder")
    return Path(text)


def known_model(text: str) -> str:
    """Parse the name of a model of this project or of timm.

    Raises:
        ArgumentTypeError: if there is no such model. The message names similar ones.
    """
    name = text.removeprefix("timm/")
    try:
        models.refuse_unknown(name)
    except models.ModelError as error:
        raise ArgumentTypeError(str(error)) from error
    return name
