"""What the config classes declare of each option beside its default: whether it is text, and whether it is a path."""

from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_type_hints

from engine.config import EvalConfig, RunConfig, TrainConfig

ENTRIES: dict[str, type[RunConfig]] = {"train": TrainConfig, "eval": EvalConfig}


@dataclass(frozen=True)
class Option:
    """An option as its class declares it.

    Attributes:
        is_text: whether its type is ``str``.
        path: the field's ``metadata["path"]``: ``"absolute"`` for what a later start from another folder must find
            again, ``"as typed"`` for any other path, None for what is no path.
    """

    is_text: bool
    path: str | None


def declared(kind: Any) -> dict[str, Option]:
    """Every option below a config class, by its dotted name. Those of all families of models are among them."""
    found: dict[str, Option] = {}
    hints = get_type_hints(kind)
    for field in fields(kind):
        hint = hints[field.name]
        if is_dataclass(hint):
            for group in _with_subclasses(hint):
                found |= {f"{field.name}.{key}": option for key, option in declared(group).items()}
        else:
            found[field.name] = Option(hint in (str, str | None), field.metadata.get("path"))
    return found


def _with_subclasses(kind: Any) -> list[Any]:
    return [kind, *(below for child in kind.__subclasses__() for below in _with_subclasses(child))]
