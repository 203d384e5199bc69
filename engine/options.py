"""What the config classes say of each option beside its type and default, and the check that settings keep to it.

A rule stands in the ``metadata`` of the option's own field. A rule over several options is a method ``check`` of the
class that holds them. This file reads both.
"""

import difflib
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_type_hints

from engine.config import EvalConfig, RunConfig, TrainConfig
from engine.errors import UserError

ENTRIES: dict[str, type[RunConfig]] = {"train": TrainConfig, "eval": EvalConfig}
LARGEST = 2**63 - 1  # a whole number of 64 bits with a sign


@dataclass(frozen=True)
class Rules:
    """What the ``metadata`` of a field may say; a word that is no attribute here is an error.

    Attributes:
        least: the number must not be less. In a list: each number, as for the three below.
        above: the number must be more.
        most: the number must not be more.
        below: the number must be less.
        infinite: whether infinity is a number like others.
        length: of a list.
        choices: the only values.
        path: ``"absolute"`` for a path that a later start from another folder must find again, ``"as typed"`` for any
            other path, None for what is no path.
        may_change: whether a run may go on with another value. On a group of options: all of them.
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
        """The range of the numbers in words, such as "more than 0, and 1 at most"; empty without limits."""
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
        """All that a user may want to know before they set the option; empty where any value of its type will do."""
        numbers = f"{self.length} numbers" + (f", each {self.limits()}" if self.limits() else "")
        return " | ".join(self.choices) or (numbers if self.length else self.limits())


@dataclass(frozen=True)
class Option:
    """An option as its class declares it.

    Attributes:
        is_text: whether its type is ``str``.
        rules: the field's metadata.
        may_change: whether a run may go on with another value.
    """

    is_text: bool
    rules: Rules
    may_change: bool


def declared(kind: Any, may_change: bool = False) -> dict[str, Option]:
    """Every option below a config class, by its dotted name. Those of all families of models are among them.

    Args:
        kind: the class.
        may_change: whether all its options may change when a run goes on.

    Raises:
        TypeError: if a field's metadata says what :class:`Rules` does not know.
    """
    found: dict[str, Option] = {}
    hints = get_type_hints(kind)
    for field in fields(kind):
        hint, rules = hints[field.name], Rules(**field.metadata)
        free = may_change or rules.may_change
        if is_dataclass(hint):
            for group in _with_subclasses(hint):
                found |= {f"{field.name}.{key}": option for key, option in declared(group, free).items()}
        else:
            found[field.name] = Option(hint in (str, str | None), rules, free)
    return found


def _with_subclasses(kind: Any) -> list[Any]:
    return [kind, *(below for child in kind.__subclasses__() for below in _with_subclasses(child))]


def check(settings: RunConfig) -> None:
    """Refuse settings that break a rule: first those of single options, then those over several.

    Raises:
        UserError: naming the first option that does. A room's own kind of error comes from the classes of that room.
    """
    groups = dict(_groups(settings))
    for prefix, group in groups.items():
        for field in fields(group):
            _check_value(f"{prefix}{field.name}", getattr(group, field.name), Rules(**field.metadata))
    for group in groups.values():
        if hasattr(group, "check"):
            group.check()


def _groups(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The config objects within one another, the outermost last, each with what stands before its options' names."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        if is_dataclass(value):
            yield from _groups(value, f"{prefix}{field.name}.")
    yield prefix, settings


def _check_value(key: str, value: Any, rules: Rules) -> None:
    if rules.choices and value is not None and value not in rules.choices:
        near = difflib.get_close_matches(str(value), rules.choices, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose {', '.join(rules.choices)}"
        raise UserError(f"{key}={value} is unknown: {hint}")
    numbers = [n for n in (value if isinstance(value, list) else [value]) if isinstance(n, int | float)]
    for number in numbers:
        if math.isnan(number):
            raise UserError(f"{key}={value} is not a number")
        if math.isinf(number) and not rules.infinite:
            raise UserError(f"{key}={value} must be finite")
        largest = max(LARGEST, rules.most or 0)
        if isinstance(number, int) and abs(number) > largest:
            raise UserError(f"{key}={value} must be {largest} or less")
    if isinstance(value, list) and rules.length not in (None, len(value)):
        raise UserError(f"{key}={value} must be {rules.length} numbers{_of(rules)}")
    if not all(map(rules.allow, numbers)):
        raise UserError(
            f"{key}={value} must be {f'{rules.length} numbers of ' if rules.length else ''}{rules.limits()}"
        )


def _of(rules: Rules) -> str:
    return f" of {rules.limits()}" if rules.limits() else ""
