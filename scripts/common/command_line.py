"""The command line of a script: the options that several scripts take, and how a script ends."""

import sys
from argparse import ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Callable
from functools import wraps
from pathlib import Path

from engine.terminal import escape_unknown_letters

# check_machine.py must run where torch is missing. So what imports torch is imported inside the functions.


def command(main: Callable[[], int | None]) -> Callable[[], int]:
    """Let a script's ``main`` return its exit status, whatever happens: 2 after a mistake, 130 after Ctrl-C.

    An error that nobody expects keeps its traceback.
    """

    @wraps(main)
    def run() -> int:
        escape_unknown_letters()
        try:
            return main() or 0
        except KeyboardInterrupt:
            return _failed("interrupted", 130)
        except BrokenPipeError:  # who read the output, such as head, has seen enough
            return 1
        except OSError as error:
            what = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
            return _failed(what, 2)
        except ValueError as error:
            from engine.errors import USER_ERRORS

            if not isinstance(error, USER_ERRORS):
                raise
            return _failed(str(error), 2)
        finally:
            _flush()

    return run


def _failed(message: str, status: int) -> int:
    from engine.log import print_error

    print_error(message)
    return status


def _flush() -> None:
    try:
        sys.stdout.flush()
    except OSError:
        from engine.log import discard

        discard(sys.stdout)


def parser_of(description: str | None) -> ArgumentParser:
    """A parser whose help is a script's docstring, with its line breaks."""
    return ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)


def positive(text: str) -> int:
    """Parse a whole number of 1 or more; :func:`whole` parses one of 0 or more."""
    return whole(text, 1)


def whole(text: str, least: int = 0) -> int:
    """Parse a whole number.

    Raises:
        ArgumentTypeError: if the text is no such number.
    """
    if not text.isdecimal() or int(text) < least:
        raise ArgumentTypeError(f"'{text}' is not a whole number of {least} or more")
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
    import models

    name = text.removeprefix("timm/")
    try:
        models.refuse_unknown(name)
    except models.ModelError as error:
        raise ArgumentTypeError(str(error)) from error
    return name
