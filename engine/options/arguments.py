"""Prepare the arguments of a command for Hydra, so that text options get exactly the text that the user typed.

Hydra parses a value before it knows the option's type: ``name=1.10`` becomes the number 1.1, and ``name=a#b`` does not
match Hydra's grammar. This module therefore puts the values of text options in quotes. Hydra does not change quoted
text.
"""

import re
import shlex
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, NoReturn

from antlr4 import CommonTokenStream, InputStream
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser, create_functions
from hydra.core.override_parser.overrides_visitor import HydraErrorListener, HydraOverrideVisitor
from hydra.core.override_parser.types import ChoiceSweep, Override, Quote, QuotedString, Sweep, Transformer
from hydra.errors import HydraException
from hydra.grammar.gen.OverrideLexer import OverrideLexer
from hydra.grammar.gen.OverrideParser import OverrideParser

from engine.errors import UserError
from engine.options.config import ENTRIES
from engine.options.rules import declared
from engine.options.timm_names import OUR_NAMES

# Text that Hydra cannot parse is used as typed. UNCLEAR lists the exceptions, where the user may have meant something
# else: a quoted string, several values, a Hydra function, or an interpolation ${...} that is incomplete.
OPEN = r"\$\{(?![^{}]+\})"
FUNCTIONS = "|".join(create_functions().functions)
UNCLEAR = re.compile(rf"""^["']|,|{OPEN}|^({FUNCTIONS})\s*\(""")


def texts_by_name(options: Iterable[str]) -> dict[str, str]:
    """Return the value that the user typed for each option, by its name without the ``+`` or ``~`` in front."""
    parts = (option.lstrip("+~").partition("=") for option in options)
    return {name: value for name, _, value in parts}


def config_folder(arguments: list[str]) -> Path | None:
    """Return the user's own folder of config files, Hydra's ``--config-dir``."""
    folder = get_args_parser().parse_known_args(arguments)[0].config_dir
    return Path(folder) if folder else None


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Separate Hydra's flags from the options, because Hydra's own parser needs all options next to each other.

    Returns:
        The flags, and the options.

    Raises:
        UserError: if a flag does not exist.
    """
    parser: Any = get_args_parser()
    parser.error = _refuse_flag
    parser.allow_abbrev = False  # timm's --experiment NAME would be short for Hydra's --experimental-rerun FILE
    options = list(parser.parse_intermixed_args(arguments).overrides)
    flags, left = [], list(options)
    for argument in arguments:
        if left and argument == left[0]:
            left.pop(0)
        else:
            flags.append(argument)
    return flags, options


def _refuse_flag(message: str) -> NoReturn:
    unknown = re.search(r"unrecognized arguments: (\S+)", message)
    if unknown is None:
        raise UserError(f"{message}: --hydra-help lists all flags")
    name, _, value = unknown[1].lstrip("-").partition("=")
    name = name.replace("-", "_")
    hint = f"options are typed without dashes, {_full_name(name)}={value or '…'}; --hydra-help lists the flags"
    raise UserError(f"there is no flag {unknown[1]}: {hint}")


def _full_name(name: str) -> str:
    """Our option for the name of a flag: timm's word translated, and the group in front if only one group has it."""
    found = [key for key in declared(ENTRIES["train"]) if key.rpartition(".")[2] == name]
    return OUR_NAMES.get(name, found[0] if len(found) == 1 else name)


def as_typed(argument: str, text: Collection[str]) -> str:
    """Put the values of text options in an argument in quotes.

    Args:
        argument: ``key=value`` in any form that Hydra accepts: with or without ``+``; one value, several values, or a
            dictionary of a group's options.
        text: the options and config groups whose values are text.

    Returns:
        The argument for Hydra.
    """
    key, equals, raw = argument.partition("=")
    option = key.lstrip("+")
    if not equals or not any(name == option or name.startswith(f"{option}.") for name in text):
        return argument
    try:
        plain = parsed(argument)
    except HydraException:
        return f"{key}={_quoted(raw)}" if option in text and not UNCLEAR.search(raw.strip()) else argument
    try:
        typed = _read(argument)
    except HydraException:  # a function that needs numbers, such as range(1,3)
        return argument
    if isinstance(typed._value, ChoiceSweep) and isinstance(plain._value, ChoiceSweep):
        values = zip(typed._value.list, plain._value.list, strict=True)
        return f"{key}={','.join(Transformer.str(_merged(option, *pair, text)) for pair in values)}"
    if isinstance(plain._value, Sweep) or plain.value() == typed.value():
        return argument
    return f"{key}={Transformer.str(_merged(option, typed._value, plain._value, text))}"


def parsed(argument: str) -> Override:
    """Return an option as Hydra's grammar reads it."""
    return OverridesParser.create().parse_override(argument)


class _AsTyped(HydraOverrideVisitor):
    """Hydra's visitor, except that numbers and booleans stay the text that the user typed."""

    def _createPrimitive(self, ctx: Any) -> Any:
        value = super()._createPrimitive(ctx)
        return QuotedString(ctx.getText().strip(), Quote.double) if isinstance(value, int | float) else value


def _read(argument: str) -> Override:
    """Parse an argument as Hydra does, with the visitor above."""
    listener = HydraErrorListener()
    lexer = OverrideLexer(InputStream(argument))
    parser = OverrideParser(CommonTokenStream(lexer))
    for part in (lexer, parser):
        part.removeErrorListeners()
        part.addErrorListener(listener)
    return _AsTyped(create_functions()).visit(parser.override())


def _merged(key: str, typed: Any, plain: Any, text: Collection[str]) -> Any:
    """Combine the two readings of a value: the typed text for text options, Hydra's value for all others."""
    if isinstance(plain, dict):
        pairs = zip(plain.items(), typed.values(), strict=True)
        return {name: _merged(f"{key}.{name}", as_text, value, text) for (name, value), as_text in pairs}
    if key not in text:
        return plain
    return QuotedString(typed, Quote.double) if isinstance(typed, str) else typed


def _quoted(raw: str) -> str:
    return QuotedString(raw.strip(), Quote.double).with_quotes()


def parsed_by_name(arguments: Iterable[str]) -> dict[str, Any]:
    """Return the value of each option that the user typed. Arguments that Hydra cannot parse are left out."""
    values = {}
    for argument in arguments:
        try:
            override = parsed(argument)
        except HydraException:
            continue
        values[override.key_or_group] = override.value()
    return values


def sweep_values(argument: str) -> list[Any]:
    """Return the values of an argument that has several."""
    return [parsed(f"x={value}").value() for value in parsed(argument).sweep_string_iterator()]


def in_shell(key: str, values: Iterable[str]) -> str:
    """Return what the user must type in a shell so that the option gets exactly these texts."""
    return shlex.quote(f"{key}={','.join(map(_quoted, values))}")
