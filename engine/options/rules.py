"""Read the rules of all options from the config classes, and check settings against them.

The rules of one option are in the ``metadata`` of its field. Rules that involve several options are in the method
``check`` of their class.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from types import NoneType
from typing import Any, get_args, get_type_hints

from engine.errors import UserError
from engine.options.config import ENTRIES, RunConfig, config_groups
from engine.similar import nearest

LARGEST = 2**63 - 1  # largest signed 64-bit integer


@dataclass(frozen=True)
class Rules:
    """The rules that the ``metadata`` of a field may contain. Any other key is an error.

    ``least``, ``above``, ``most`` and ``below`` apply to a number, or to each number of a list.

    Attributes:
        least: the smallest allowed number.
        above: the number must be greater than this.
        most: the largest allowed number.
        below: the number must be less than this.
        infinite: whether infinity is allowed.
        length: required length of a list.
        choices: the allowed texts; empty: any. Beside limits, a number within them is allowed as well.
        path: ``"absolute"`` for a path that a later start from another folder must find again; ``"as typed"`` for any
            other path; None if the option is not a path.
        may_change: whether a resumed run may have another value. For a group it applies to all options in the group.
    """

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    infinite: bool = False
    length: int | None = None
    choices: tuple[str, ...] = ()
    path: str | None = None
    may_change: bool = False

    def limits(self) -> str:
        """Return the range in words, such as "more than 0, and 1 at most"; empty if there are no limits."""
        if (self.least, self.most) == (0, 1):
            return "between 0 and 1"
        lower = f"{self.least} or more" if self.least is not None else ""
        lower = f"more than {self.above}" if self.above is not None else lower
        upper = f"{self.most} at most" if self.most is not None else ""
        upper = f"less than {self.below}" if self.below is not None else upper
        return ", and ".join(filter(None, (lower, upper)))

    def allow(self, number: float) -> bool:
        """Whether a number is within the limits."""
        return not (
            (self.least is not None and number < self.least)
            or (self.above is not None and number <= self.above)
            or (self.most is not None and number > self.most)
            or (self.below is not None and number >= self.below)
        )

    def words(self) -> str:
        """Return the choices and limits in words, for ``--help``; empty if every value of the type is allowed."""
        numbers = f"{self.length} numbers" + (f", each {self.limits()}" if self.limits() else "")
        return " | ".join(filter(None, (*self.choices, numbers if self.length else self.limits())))


@dataclass(frozen=True)
class Option:
    """One option of a config class.

    Attributes:
        is_text: whether its type is ``str`` or ``str | None``.
        may_be_null: whether its type includes None.
        rules: the rules from the metadata of its field, and of the groups around it.
    """

    is_text: bool
    may_be_null: bool
    rules: Rules


def declared(kind: Any, may_change: bool = False) -> dict[str, Option]:
    """Return all options in a config class and its groups, by dotted name. They include those of all model families.

    Args:
        kind: the class.
        may_change: whether a resumed run may have other values for all of its options.

    Raises:
        TypeError: if a field's metadata has a key that :class:`Rules` does not have.
    """
    found: dict[str, Option] = {}
    hints = get_type_hints(kind)
    for field in fields(kind):
        hint, rules = hints[field.name], Rules(**field.metadata)
        rules = replace(rules, may_change=may_change or rules.may_change)
        if is_dataclass(hint):
            for group in _with_subclasses(hint):
                found |= {f"{field.name}.{key}": option for key, option in declared(group, rules.may_change).items()}
        else:
            found[field.name] = Option(hint in (str, str | None), NoneType in get_args(hint), rules)
    return found


def text_options(entry: str) -> set[str]:
    """Return the text options of ``"train"`` or ``"eval"``, and the config groups, whose values are file names."""
    return config_groups() | {key for key, option in declared(ENTRIES[entry]).items() if option.is_text}


def _with_subclasses(kind: Any) -> list[Any]:
    return [kind, *(below for child in kind.__subclasses__() for below in _with_subclasses(child))]


def check(settings: RunConfig) -> None:
    """Refuse settings that break a rule. Rules of single options are checked first, then rules about several options.

    Raises:
        UserError: naming the first option that breaks a rule. Config classes of other packages raise their own errors.
    """
    groups = dict(_groups(settings))
    for prefix, group in groups.items():
        for field in fields(group):
            _check_value(f"{prefix}{field.name}", getattr(group, field.name), Rules(**field.metadata))
    for group in groups.values():
        if hasattr(group, "check"):
            group.check()


def _groups(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the nested config objects, the outermost last, each with the prefix of its options such as ``"model."``."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        if is_dataclass(value):
            yield from _groups(value, f"{prefix}{field.name}.")
    yield prefix, settings


def _check_value(key: str, value: Any, rules: Rules) -> None:
    if rules.choices and isinstance(value, str) and value not in rules.choices:
        others = [f"a number {rules.limits()}"] if rules.limits() else []
        raise UserError(f"{key}={value} is unknown: {nearest(value, [*rules.choices, *others])}")
    numbers = [n for n in (value if isinstance(value, list) else [value]) if isinstance(n, int | float)]
    for number in numbers:
        if math.isnan(number):
            raise UserError(f"{key}={value} is not a number")
        if math.isinf(number) and not rules.infinite:
            raise UserError(f"{key}={value} must be finite")
        largest = max(LARGEST, rules.most or 0)
        if isinstance(number, int) and abs(number) > largest:
            raise UserError(f"{key}={value} must be {largest} or less")
    has_other_length = isinstance(value, list) and rules.length not in (None, len(value))
    if has_other_length or not all(map(rules.allow, numbers)):
        count = f"{rules.length} numbers" if rules.length else ""
        raise UserError(f"{key}={value} must be {' of '.join(filter(None, (count, rules.limits())))}")
